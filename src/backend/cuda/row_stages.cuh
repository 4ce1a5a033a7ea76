/* How the rows that a block multiplies come to shared memory: weights [n, k], and x [m, k].
 *
 * They come in stages of some columns, of which a few are under way at once; often one stage is all. From
 * capability 9.0 on a row of a stage is one bulk copy: asking for it costs neither registers nor the threads'
 * way to memory, which blocks whose turn it is have for themselves. Elsewhere all threads copy 16 bytes at a
 * time.
 *
 * Invariants: stage s lies in place s % places, which all threads have read, and a __syncthreads is behind
 * them, before it is asked for again. Rows lie 64 bytes beyond a multiple of 128 apart, so that the four
 * lanes of a row and those of its neighbour read different banks. */
#ifndef TAPER_BACKEND_CUDA_ROW_STAGES_CUH
#define TAPER_BACKEND_CUDA_ROW_STAGES_CUH

#include "backend/cuda/mbarrier.cuh"
#include "backend/cuda/tensor.cuh"

constexpr int chunk = 128;           /* columns that a warp multiplies by at a time */
constexpr int most_places = 4;       /* of stages in shared memory */
constexpr int warp_bytes = 14 << 10; /* under way for each warp, if two stages are not more */

struct stage_shape {
    int columns, rows, pitch; /* of a stage, at most 32 rows; pitch in bytes */
    int count, places;
    int bytes; /* of all places */
};

/* All columns as one stage, or a chunk of each warp. `limit`: bytes that there are. */
static inline stage_shape lay_stages(int64_t k, int rows, int warps, int limit) {
    const int budget = warps * warp_bytes < limit ? warps * warp_bytes : limit;
    const int64_t whole = tpi_div_up(k, chunk) * chunk;
    stage_shape s = {};
    s.columns = rows * (whole * 2 + 64) <= budget ? (int)whole : warps * chunk;
    s.rows = rows, s.pitch = s.columns * 2 + 64;
    const int bytes = rows * s.pitch, fewest = 2 * bytes <= limit ? 2 : 1;
    s.count = (int)tpi_div_up(k, s.columns);
    s.places = budget / bytes < fewest ? fewest : budget / bytes;
    if (s.places > most_places) s.places = most_places;
    if (s.places > s.count) s.places = s.count;
    s.bytes = s.places * bytes;
    return s;
}

/* With `source` the beginning of row `lane` in memory, NULL: there is none. */
struct row_stages {
    const stage_shape &shape;
    int k;
    uint8_t *memory;
    uint64_t *arrived; /* [most_places] */
    const void *source;

    __device__ __forceinline__ uint8_t *row(int place, int r) const {
        return memory + (place * shape.rows + r) * shape.pitch;
    }
    __device__ __forceinline__ int bytes_of(int stage) const {
        return 2 * min(shape.columns, k - stage * shape.columns);
    }

#if __CUDA_ARCH__ >= 900
    __device__ __forceinline__ void begin() const {
        if (threadIdx.x < most_places) barrier_init(shared_address(&arrived[threadIdx.x]), 1);
        barriers_made();
        __syncthreads();
    }
    /* Asks for rows first ... end-1 of a stage, of which all rows will be asked for. */
    __device__ __forceinline__ void ask(int stage, int place, int first, int end) const {
        if (threadIdx.x >= 32 || first == end) return;
        const int r = threadIdx.x, bytes = bytes_of(stage);
        const int there = __popc(__ballot_sync(0xffffffffu, source != nullptr));
        const uint32_t barrier = shared_address(&arrived[place]);
        if (r == 0 && first == 0) barrier_expect(barrier, there * bytes);
        __syncwarp();
        if (source && r >= first && r < end)
            copy_bulk(shared_address(row(place, r)),
                      (const uint8_t *)source + (int64_t)stage * shape.columns * 2, bytes, barrier);
    }
    __device__ __forceinline__ void wait(int place, int turn) const {
        barrier_wait(shared_address(&arrived[place]), turn & 1);
    }
#else
    __device__ __forceinline__ void begin() const {}
    __device__ __forceinline__ void ask(int stage, int place, int first, int end) const {
        const int bytes = bytes_of(stage), lane = threadIdx.x & 31;
        for (int r = first + (int)(threadIdx.x >> 5); r < end; r += (int)(blockDim.x >> 5)) {
            const auto from = (const uint8_t *)__shfl_sync(0xffffffffu, (unsigned long long)source, r);
            for (int at = 16 * lane; from && at < bytes; at += 16 * 32)
                copy_async(shared_address(row(place, r) + at), from + (int64_t)stage * shape.columns * 2 + at,
                           true);
        }
        copies_begun();
    }
    /* One group has been asked for behind each of the stages that follow. */
    __device__ __forceinline__ void wait(int, int) const {
        switch (shape.places) {
        case 1:
            copies_wait<0>();
            break;
        case 2:
            copies_wait<1>();
            break;
        case 3:
            copies_wait<2>();
            break;
        default:
            copies_wait<3>();
        }
        __syncthreads();
    }
#endif
};

#endif
