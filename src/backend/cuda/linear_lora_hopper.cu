/* The launches of LINEAR_LORA on Hopper: a small kernel that splits a and b into high and low bf16
 * (linear_lora_split.cuh), and the product (linear_lora_hopper.cuh), which begins while that one is ending.
 * A layer's a and b of up to 16 ranks that are bf16 and lie as w does need no splitting.
 *
 * Of more ranks than a block has room for, h is a product of its own between these (linear_lora_wide.cuh),
 * and y = x·w + h·b a sum of two. */
#include "backend/cuda/hopper_launch.cuh"
#include "backend/cuda/linear_lora_gated.cuh"
#include "backend/cuda/linear_lora_split.cuh"
#include "backend/cuda/linear_lora_wide.cuh"
#include "backend/cuda/lora.h"

#include <limits.h>

namespace {

/* A layer's, with the zeros that are added. */
int layer_rank(const tpi_lora_layers &all) {
    return (int)tpi_div_up(all.layer[0].rank, 8) * 8;
}
int rank_of(const tpi_lora_layers &all) {
    return all.count * layer_rank(all);
}

/* Inner indices of all layers. */
int64_t inner_of(const tpi_lora_layers &all) {
    int64_t k = all.layer[0].k;
    for (int i = 1; i < all.count && !all.twins; i++) k += all.layer[i].k;
    return k;
}

constexpr int ranks_in_block = 32;

/* Whether h is made by a product of its own. */
bool is_wide(const tpi_lora_layers &all) {
    return rank_of(all) > ranks_in_block;
}

/* Of h₁ h₂ h₁, and of the bias. */
int h_columns_of(const tpi_lora_layers &all) {
    return 3 * rank_of(all) + (all.layer[0].bias ? 2 : 0);
}

/* Where things stand in scratch: of h parts, or all. */
struct pieces {
    size_t h, a, b[2], end;
};

pieces pieces_of(const tpi_lora_layers &all, int ranks) {
    const int64_t m = all.layer[0].m, pairs = tpi_div_up(m, pair_rows);
    const int64_t makers = pairs > most_makers ? pairs : most_makers;
    if (is_wide(all)) ranks = rank_of(all);
    pieces p = {};
    p.h = tpi_piece(&p.end, is_wide(all) ? (size_t)m * wide_leading(rank_of(all)) * sizeof(bf16)
                                         : (size_t)(makers * pair_rows * ranks) * sizeof(float));
    p.a = tpi_piece(&p.end, (size_t)(2 * ranks * inner_of(all)) * sizeof(bf16));
    for (int i = 0; i <= (all.twins ? 1 : 0); i++)
        p.b[i] = tpi_piece(&p.end, (size_t)((3 * rank_of(all) + 8) * all.layer[0].n) * sizeof(bf16));
    return p;
}

/* Of a and b as they lie. */
template <class L> bool map_adapter(encode_fn f, tile_maps *maps, const tpi_lora_layers &all) {
    const tpi_layer &l = all.layer[0];
    const void *a = tpi_in(&all.launch[0], l.a), *b = tpi_in(&all.launch[0], l.b);
    return (L::outer_a ? encode_narrow(f, &maps->a, a, l.k, l.rank, l.ma.leading, tile_inner)
                       : encode(f, &maps->a, a, l.rank, l.k, l.ma.leading, L::ranks)) &&
           encode_half<L>(f, &maps->b[0], b, l.rank, l.n, l.mb.leading);
}

/* Of what the splitting kernel makes of a and b; and of h, where that is a product of its own. */
template <class L>
bool map_split(encode_fn f, tile_maps *maps, const tpi_lora_layers &all, const pieces &at,
               const split_job &split) {
    const bool wide = is_wide(all);
    const int h_columns = h_columns_of(all);
    const int64_t b_leading = L::outer_w ? split.to_r : split.to_n, leading = wide_leading(split.rank);
    const char *h = (const char *)tpi_scratch(&all.launch[0]) + at.h;
    bool made = wide ? encode(f, &maps->x[1], h, all.layer[0].m, h_columns, leading, tile_rows)
                     : encode(f, &maps->a, split.of[0].to_a, 2 * L::ranks, split.a_leading, split.a_leading,
                              2 * L::ranks);
    for (int i = 0; i <= all.twins && made; i++)
        made = encode_half<L>(f, wide ? &maps->w[1] : &maps->b[i], split.of[i].to_b, h_columns,
                              all.layer[i].n, b_leading);
    return made;
}

template <class L> bool map_layers(encode_fn f, tile_maps *maps, const tpi_lora_layers &all) {
    bool made = true;
    for (int i = 0; i < all.count && made; i++) {
        const tpi_layer &l = all.layer[i];
        made = encode(f, &maps->x[i], tpi_in(&all.launch[i], 0), l.m, l.k, l.mx.leading, tile_rows) &&
               encode_half<L>(f, &maps->w[i], tpi_in(&all.launch[i], l.w), l.k, l.n, l.mw.leading);
    }
    return made;
}

/* How many of a pair of row blocks' tiles make h. */
int makers_of(const lora_job &job, int clusters) {
    int makers = (clusters < most_makers ? clusters : most_makers) / job.pairs;
    if (makers > job.columns) makers = job.columns;
    if (makers > job.steps) makers = job.steps;
    return makers > 1 ? makers : 1;
}

/* How h is scaled, and to whom it is given. */
void set_low_rank(lora_job *job, const tpi_lora_layers &all) {
    job->own_rank = (int)all.layer[0].rank;
    job->scale = all.layer[0].scale;
    for (int i = 0; i < all.count; i++)
        if (tpi_wants_low_rank(all.launch[i].step)) {
            job->h[i] = tpi_out(&all.launch[i], 1);
            job->h_wide = tpi_out_operand(all.launch[i].step, 1)->dtype == TP_F32;
        }
}

template <class L> lora_job job_of(const tpi_lora_layers &all, const pieces &at, int clusters) {
    char *scratch = (char *)tpi_scratch(&all.launch[0]);
    const tpi_layer &l = all.layer[0];
    lora_job job = plain_job<L>(l.m, l.n, 0, all.twins);
    job.y[0] = (bf16 *)(all.sum ? all.sum : tpi_out(&all.launch[0], 0));
    if (all.twins) job.y[1] = (bf16 *)tpi_out(&all.launch[1], 0);
    job.gated = (bf16 *)all.gated;
    for (int i = 0; i < most_layers; i++) {
        if (i == 0 || (i < all.count && !all.twins)) job.steps += (int)tpi_div_up(all.layer[i].k, tile_inner);
        if (i == 1 && is_wide(all)) job.steps += (int)tpi_div_up(h_columns_of(all), tile_inner);
        job.end[i] = job.steps;
    }
    if (is_wide(all)) return job;
    job.partial = (float *)(scratch + at.h);
    job.rank = L::parts == 1 ? L::ranks : rank_of(all), job.layer_rank = job.rank / all.count;
    job.h_columns = L::parts == 1 ? L::h_parts * job.rank : h_columns_of(all);
    job.makers = makers_of(job, clusters);
    set_low_rank(&job, all);
    return job;
}

template <class L> split_job split_of(const tpi_lora_layers &all, const pieces &at, const lora_job &job) {
    char *scratch = (char *)tpi_scratch(&all.launch[0]);
    const int rank = rank_of(all), each = layer_rank(all);
    split_job s = {};
    int64_t inner = 0;
    for (int i = 0; i < all.count; i++) {
        const tpi_layer &l = all.layer[i];
        const tpi_launch *launch = &all.launch[i];
        split_layer &to = s.of[i];
        to.a = tpi_in(launch, l.a), to.b = tpi_in(launch, l.b);
        to.a_k = l.ma.transposed ? 1 : l.ma.leading, to.a_r = l.ma.transposed ? l.ma.leading : 1;
        to.b_r = l.mb.transposed ? 1 : l.mb.leading, to.b_n = l.mb.transposed ? l.mb.leading : 1;
        if (l.bias) to.bias = tpi_in(launch, l.bias);
        to.to_a = (bf16 *)(scratch + at.a) + inner;
        to.to_b = (bf16 *)(scratch + at.b[all.twins ? i : 0]);
        to.k = (int)l.k, to.rank = (int)l.rank, to.first = i * each;
        const int end = to.first + each;
        to.a_begin = all.twins ? to.first : 0, to.a_end = all.twins ? end : rank;
        to.b_begin = all.twins ? 0 : to.first, to.b_end = all.twins ? rank : end;
        if (!all.twins) inner += l.k;
    }
    s.a_leading = inner_of(all);
    s.to_r = L::outer_w ? job.n : 1, s.to_n = L::outer_w ? 1 : 3 * rank + 8;
    s.n = job.n, s.rank = rank, s.ranks = is_wide(all) ? rank : L::ranks;
    s.wide_bias = all.layer[0].bias && tpi_in_operand(all.launch[0].step, all.layer[0].bias)->dtype == TP_F32;
    s.steady = all.steady;
    return s;
}

tp_status start_split(const tpi_lora_layers &all, const split_job &s) {
    int64_t items = 0;
    for (int i = 0; i < all.count; i++) {
        const split_layer &l = s.of[i];
        const int64_t mine =
            (int64_t)(l.a_end - l.a_begin) * l.k + (int64_t)(l.b_end - l.b_begin + (l.bias ? 1 : 0)) * s.n;
        if (mine > items) items = mine;
    }
    const dim3 grid((unsigned)tpi_div_up(items, 256), (unsigned)all.count);
    const tpi_cuda *cuda = tpi_cuda_of(&all.launch[0]);
    start_early(cuda, all.layer[0].ma.dtype == TP_F32 ? split_kernel<float> : split_kernel<bf16>, grid, 256,
                s);
    return tpi_cuda_launched(&all.launch[0]);
}

/* h of more ranks than a block has room for: a's high and low ranks are twins. */
tp_status start_wide(const tpi_lora_layers &all, const pieces &at, const split_job &split) {
    using W = wide_layout;
    const tpi_launch *launch = &all.launch[0];
    const tpi_layer &l = all.layer[0];
    const int rank = rank_of(all);
    const keep_low_rank keep = {(bf16 *)((char *)tpi_scratch(launch) + at.h), rank, l.bias != 0};
    lora_job job = plain_job<W>(l.m, rank, l.k, true);
    set_low_rank(&job, all);
    tile_maps maps = {};
    const encode_fn f = encoder();
    const bf16 *a = split.of[0].to_a;
    bool made = f && encode(f, &maps.x[0], tpi_in(launch, 0), l.m, l.k, l.mx.leading, tile_rows);
    for (int i = 0; i < 2 && made; i++)
        made = encode_half<W>(f, &maps.w[i], a + i * split.ranks * split.a_leading, l.k, rank, l.k);
    if (!made) return no_maps(launch, "linear_lora");
    return start_tiles<W>(launch, maps, job, keep);
}

template <class L, class Ending> tp_status run(const tpi_lora_layers &all, const Ending &ending) {
    const tpi_launch *launch = &all.launch[0];
    const pieces at = pieces_of(all, L::ranks);
    int clusters = 0; /* that can be there at once: tiles wait for each other */
    TPI_TRY((find_room<L, Ending>(launch, &clusters)));
    const lora_job job = job_of<L>(all, at, clusters);
    tile_maps maps = {};
    const encode_fn f = encoder();
    if (!f || !map_layers<L>(f, &maps, all) || (L::parts == 1 && !map_adapter<L>(f, &maps, all)))
        return no_maps(launch, "linear_lora");
    if (L::parts == 2) {
        const split_job split = split_of<L>(all, at, job);
        if (!map_split<L>(f, &maps, all, at, split)) return no_maps(launch, "linear_lora");
        TPI_TRY(start_split(all, split));
        if (is_wide(all)) TPI_TRY(start_wide(all, at, split));
    }
    return start_tiles<L>(launch, clusters, maps, job, ending);
}

template <class L> tp_status run(const tpi_lora_layers &all) {
    return run<L>(all, store_tiles());
}

/* With the gradients by gate and up. */
template <class L> tp_status run_gated(const tpi_lora_layers &all) {
    const tpi_gate &gate = *all.gate;
    const tpi_layer &l = all.layer[0];
    const encode_fn f = encoder();
    gate_gradients ending = {};
    ending.dgate = (bf16 *)gate.dgate, ending.dup = (bf16 *)gate.dup, ending.y = (bf16 *)gate.y;
    if (!f || !encode(f, &ending.gate, gate.gate, l.m, l.n, l.n, tile_rows) ||
        !encode(f, &ending.up, gate.up, l.m, l.n, l.n, tile_rows))
        return no_maps(&all.launch[0], "linear_lora");
    return run<L>(all, ending);
}

int64_t cost(const tpi_lora_layers &all, int columns) {
    const tpi_layer &l = all.layer[0];
    return cost_of_tiles(tpi_cuda_of(&all.launch[0]), l.m, all.twins ? 2 * l.n : l.n, columns);
}

/* Ranks that a layout makes room for: all, or none of them. */
int room_for(const tpi_lora_layers &all) {
    return rank_of(all) <= 16 || is_wide(all) ? 16 : ranks_in_block;
}

/* Halves of tiles of 224 columns are no whole number of what a thread stores at once. */
int columns_for(const tpi_lora_layers &all) {
    const int64_t wide = cost(all, 256), middle = all.twins ? wide : cost(all, 224), narrow = cost(all, 128);
    if (wide <= middle && wide <= narrow) return 256;
    return middle <= narrow ? 224 : 128;
}

/* Whether the product can read a and b as they lie: bf16, in w's order, with rows that copies can begin at. */
bool lies_ready(const tpi_lora_layers &all) {
    const tpi_layer &l = all.layer[0];
    const uintptr_t places = (uintptr_t)tpi_in(&all.launch[0], l.a) | (uintptr_t)tpi_in(&all.launch[0], l.b);
    return all.count == 1 && l.ma.dtype == TP_BF16 && !l.bias && l.rank <= 16 && l.rank % 8 == 0 &&
           l.ma.transposed == l.mw.transposed && l.mb.transposed == l.mw.transposed &&
           l.ma.leading % 8 == 0 && l.mb.leading % 8 == 0 && places % 16 == 0;
}

template <bool OUTER_W, bool SPLIT> tp_status run_few(const tpi_lora_layers &all, int columns) {
    if (columns == 256) return run<layout<256, 16, OUTER_W, SPLIT>>(all);
    if (columns == 224) return run<layout<224, 16, OUTER_W, SPLIT>>(all);
    return run<layout<128, 16, OUTER_W, SPLIT>>(all);
}

template <bool OUTER_W> tp_status run_any(const tpi_lora_layers &all) {
    if (OUTER_W && all.gate)
        return room_for(all) > 16 ? run_gated<layout<256, ranks_in_block, true>>(all)
                                  : run_gated<layout<256, 16, true>>(all);
    const int columns = columns_for(all);
    if (room_for(all) > 16)
        return columns > 128 ? run<layout<256, ranks_in_block, OUTER_W>>(all)
                             : run<layout<128, ranks_in_block, OUTER_W>>(all);
    return lies_ready(all) ? run_few<OUTER_W, false>(all, columns) : run_few<OUTER_W, true>(all, columns);
}

/* Places of the layer's matrices that copies begin at, or'ed. */
uintptr_t places_of(const tpi_launch *launch, const tpi_layer &l) {
    return (uintptr_t)tpi_in(launch, 0) | (uintptr_t)tpi_in(launch, l.w) | (uintptr_t)tpi_out(launch, 0);
}

/* What a thread of the splitting kernel is the number of. */
bool splits_fit(const tpi_lora_layers &all) {
    const int64_t n = all.layer[0].n;
    return rank_of(all) * (inner_of(all) + n) + n < INT_MAX - 256;
}

/* A bias is split as f32 or bf16. */
bool bias_fits(const tpi_launch *launch, const tpi_layer &l) {
    return !l.bias || tpi_in_operand(launch->step, l.bias)->dtype != TP_F16;
}

/* Whether layer i may be one product with the first. */
bool alike(const tpi_lora_layers &all, int i) {
    const tpi_layer &l = all.layer[0], &o = all.layer[i];
    const tpi_step *first = all.launch[0].step, *step = all.launch[i].step;
    if (o.m != l.m || o.n != l.n || o.rank != l.rank || o.scale != l.scale || o.bias != l.bias) return false;
    if (o.mw.transposed != l.mw.transposed || o.ma.dtype != l.ma.dtype) return false;
    if (o.bias && tpi_in_operand(step, o.bias)->dtype != tpi_in_operand(first, l.bias)->dtype) return false;
    if (tpi_wants_low_rank(step) && tpi_wants_low_rank(first) &&
        tpi_out_operand(step, 1)->dtype != tpi_out_operand(first, 1)->dtype)
        return false;
    if (all.twins) return o.k == l.k && o.mx.leading == l.mx.leading;
    return !o.bias && l.k % tile_inner == 0 && o.k % tile_inner == 0;
}

/* Whether the gradients by gate and up may be the product's: copies of these start like those of x, and their
 * tiles are made of w with its rows along the columns. */
bool gate_fits(const tpi_lora_layers &all) {
    const tpi_gate &g = *all.gate;
    const uintptr_t places =
        (uintptr_t)g.gate | (uintptr_t)g.up | (uintptr_t)g.dgate | (uintptr_t)g.dup | (uintptr_t)g.y;
    return !all.layer[0].mw.transposed && all.layer[0].n % 8 == 0 && places % 16 == 0;
}

} // namespace

/* Never less than a product of the library may use, so layers of one product find room in the first one's. */
size_t tpi_cuda_lora_hopper_scratch(const tpi_layer *l) {
    tpi_lora_layers one = {};
    one.layer[0] = *l, one.count = 1;
    const size_t bytes = pieces_of(one, room_for(one)).end;
    return bytes > TPI_PRODUCT_WORKSPACE ? bytes : TPI_PRODUCT_WORKSPACE;
}

/* Copies start at multiples of 16 bytes, and so do their rows. */
bool tpi_cuda_lora_hopper_fits(const tpi_lora_layers *all) {
    const tpi_layer *l = all->layer;
    bool fits = tpi_cuda_of(&all->launch[0])->capability == 90;
    for (int i = 0; i < all->count && fits; i++)
        fits = l[i].m <= most_row_blocks * tile_rows && l[i].n < INT_MAX / 256 && l[i].k < INT_MAX / 256 &&
               l[i].n >= 64 && l[i].k > 0 && l[i].rank > 0 && places_of(&all->launch[i], l[i]) % 16 == 0 &&
               l[i].mw.leading % 8 == 0 && bias_fits(&all->launch[i], l[i]) && (i == 0 || alike(*all, i));
    fits = fits && splits_fit(*all);
    if (all->gate) fits = fits && gate_fits(*all);
    if (!fits || all->count == 1) return fits;
    return !is_wide(*all) && pieces_of(*all, ranks_in_block).end <= tpi_cuda_lora_hopper_scratch(l);
}

tp_status tpi_cuda_lora_hopper(const tpi_lora_layers *all) {
    return all->layer[0].mw.transposed ? run_any<false>(*all) : run_any<true>(*all);
}
