/* What a launch of tiles on Hopper needs from the host: maps, room for pairs of blocks, and their start. */
#ifndef TAPER_BACKEND_CUDA_HOPPER_LAUNCH_CUH
#define TAPER_BACKEND_CUDA_HOPPER_LAUNCH_CUH

#include "backend/cuda/linear_lora_hopper.cuh"
#include "backend/cuda/tensor_map.cuh"

namespace {

/* Pairs of blocks, which may start while the kernel before is ending, captured or not: until their turn they
 * read the launch's arguments alone. */
struct pair_launch {
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config;

    pair_launch(const tpi_launch *launch, int pairs, int shared_bytes) : attributes(), config() {
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim = {2, 1, 1};
        attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[1].val.programmaticStreamSerializationAllowed = 1;
        config.gridDim = dim3(2 * (unsigned)pairs);
        config.blockDim = dim3(threads);
        config.dynamicSmemBytes = shared_bytes;
        config.stream = tpi_cuda_of(launch)->stream;
        config.attrs = attributes;
        config.numAttrs = 2;
    }
};

/* How many pairs of blocks that make such tiles the device has room for at once. That they get it is for
 * sharing.c to see to: no other launch waits for a part of itself meanwhile. */
template <class L, class Ending> tp_status find_room(const tpi_launch *launch, int *pairs) {
    const auto kernel = tile_kernel<L, Ending>;
    const pair_launch every(launch, tpi_cuda_of(launch)->processors / 2, L::shared_bytes);
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::shared_bytes);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(pairs, kernel, &every.config);
    return tpi_cuda_check(error, launch);
}

/* Starts the job's tiles on pairs of blocks, no more than `room`. */
template <class L, class Ending>
tp_status start_tiles(const tpi_launch *launch, int room, const tile_maps &maps, const lora_job &job,
                      const Ending &ending) {
    const int tiles = job.pairs * job.columns;
    const pair_launch some(launch, tiles < room ? tiles : room, L::shared_bytes);
    return tpi_cuda_check(cudaLaunchKernelEx(&some.config, tile_kernel<L, Ending>, maps, job, ending),
                          launch);
}

/* On as many as there is room for. */
template <class L, class Ending>
tp_status start_tiles(const tpi_launch *launch, const tile_maps &maps, const lora_job &job,
                      const Ending &ending) {
    int room = 0;
    TPI_TRY((find_room<L, Ending>(launch, &room)));
    return start_tiles<L>(launch, room, maps, job, ending);
}

/* A map of w, or of b, for halves of tiles: [inner, n], or [n, inner]. */
template <class L>
bool encode_half(encode_fn function, CUtensorMap *map, const void *data, int64_t inner, int64_t n,
                 int64_t leading) {
    return L::outer_w ? encode(function, map, data, inner, n, leading, tile_inner)
                      : encode(function, map, data, n, inner, leading, L::half_columns);
}

/* What tiles of so many columns of [m, n] take together: their turns, each of which costs its columns and, to
 * begin and to end it, as much as 32 more. */
int64_t cost_of_tiles(const tpi_cuda *cuda, int64_t m, int64_t n, int columns) {
    const int64_t tiles = tpi_div_up(m, pair_rows) * tpi_div_up(n, columns);
    return tpi_div_up(tiles, cuda->processors / 2) * (columns + 32);
}

/* A product without ranks, of k inner indices, for m rows and so many columns, of twins each. */
template <class L> lora_job plain_job(int64_t m, int64_t columns, int64_t k, bool twins) {
    lora_job job = {};
    job.twins = twins;
    job.m = (int)m, job.n = (int)columns;
    job.pairs = (int)tpi_div_up(m, pair_rows);
    job.columns = (int)tpi_div_up(columns, twins ? L::columns / 2 : L::columns);
    job.steps = (int)tpi_div_up(k, tile_inner);
    for (int &end : job.end) end = job.steps;
    return job;
}

} // namespace

#endif
