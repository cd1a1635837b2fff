// Token merging: where every patch goes, and the tokens and positions that go there. Twins: come_ros/kernels/reference.py.
#include "common.cuh"

// merged: (rows, groups) 0 or 1 -> source: (rows, length), rev: (rows, patches). One block a row; block (threads, 1).
//
// A merged row is [edge patches | patches of whole groups | one token for each merged group | padding]. Every thread owns a run of
// neighbouring groups; a prefix sum over the runs' counts tells it where its first ones go.
extern "C" __global__ void __launch_bounds__(COME_ROS_THREADS)
merge_layout(const unsigned char* __restrict__ merged, Index* __restrict__ source, Index* __restrict__ rev, Index rows,
             Index length, Index height, Index width, Index group_height, Index group_width) {
    const Grid grid = {height, width, group_height, group_width};
    const Index count = groups(grid), size = group_size(grid), edge = edge_patches(grid);
    const Index run = (count + blockDim.x - 1) / blockDim.x;
    const Index first = threadIdx.x * run < count ? threadIdx.x * run : count;
    const Index last = first + run < count ? first + run : count;
    __shared__ Index up_to[COME_ROS_THREADS];  // merged groups in the runs of the threads up to this one

    for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
        const unsigned char* const mask = merged + row * count;
        Index* const source_row = source + row * length;
        Index* const rev_row = rev + row * patches(grid);

        Index own = 0;
        for (Index group = first; group < last; ++group) own += mask[group] != 0;
        up_to[threadIdx.x] = own;
        __syncthreads();
        for (unsigned step = 1; step < blockDim.x; step *= 2) {
            const Index before = threadIdx.x >= step ? up_to[threadIdx.x - step] : 0;
            __syncthreads();
            up_to[threadIdx.x] += before;
            __syncthreads();
        }
        const Index total = up_to[blockDim.x - 1];
        const Index whole_tokens = edge + size * (count - total);
        Index merged_before = up_to[threadIdx.x] - own;

        // too short a `length` is the caller's mistake: nothing is written beyond the row
        for (Index e = threadIdx.x; e < edge; e += blockDim.x) {
            if (e < length) source_row[e] = edge_patch(e, grid);
            rev_row[edge_patch(e, grid)] = e;
        }
        for (Index group = first; group < last; ++group) {
            const bool one = mask[group] != 0;
            const Index slot = one ? whole_tokens + merged_before : edge + size * (group - merged_before);
            if (one && slot < length) source_row[slot] = patches(grid) + group;
            for (Index j = 0; j < size; ++j) {
                const Index patch = member(group, j, grid);
                if (!one && slot + j < length) source_row[slot + j] = patch;
                rev_row[patch] = one ? slot : slot + j;
            }
            merged_before += one;
        }
        for (Index slot = whole_tokens + total + threadIdx.x; slot < length; slot += blockDim.x) source_row[slot] = -1;
        __syncthreads();  // up_to is used again by the next row
    }
}

// x: (rows, or 1 if row_step is 0, special + patches, channels) -> out: (rows, special + length, channels), by source (rows, length).
// Channels are counted in packs of N. Threads in x share a token, threads in y take neighbouring tokens, blocks in y take rows: so
// no thread divides to find its place.
template <typename In, typename Out, int N>
__device__ void merge(const In* x, const Index* __restrict__ source, Out* out, Index rows, Index row_step, Index special,
                      Index length, Index packs, Grid grid) {
    const Pack<In, N>* const from = reinterpret_cast<const Pack<In, N>*>(x);
    Pack<Out, N>* const to = reinterpret_cast<Pack<Out, N>*>(out);
    const Index tokens = special + patches(grid);
    const float members = static_cast<float>(group_size(grid));

    for (Index row = blockIdx.y; row < rows; row += gridDim.y) {
        const Pack<In, N>* const from_row = from + token_offset(row * row_step, 0, tokens, packs);
        const Index step = static_cast<Index>(gridDim.x) * blockDim.y;
        for (Index token = static_cast<Index>(blockIdx.x) * blockDim.y + threadIdx.y; token < special + length; token += step) {
            Pack<Out, N>* const to_token = to + token_offset(row, token, special + length, packs);
            const Index what = token < special ? token : source[row * length + token - special];
            const bool copied = token < special || (what >= 0 && what < patches(grid));
            const bool averaged = !copied && what >= 0 && what < patches(grid) + groups(grid);
            const Index first = token < special ? token
                                : copied        ? special + what
                                : averaged      ? special + first_member(what - patches(grid), grid)
                                                : 0;
            const Pack<In, N>* const from_token = from_row + first * packs;

            for (Index c = threadIdx.x; c < packs; c += blockDim.x) {
                Pack<Out, N> result;
                if (copied) {
                    const Pack<In, N> value = from_token[c];
                    for (int k = 0; k < N; ++k) convert(value.at[k], result.at[k]);
                } else {
                    float sum[N] = {};  // stays zero for padding
                    if (averaged) {
                        for (Index i = 0; i < grid.group_height; ++i) {
#pragma unroll 4  // several loads in flight
                            for (Index j = 0; j < grid.group_width; ++j) {
                                const Pack<In, N> value = from_token[(i * grid.width + j) * packs + c];
                                for (int k = 0; k < N; ++k) sum[k] += to_float(value.at[k]);
                            }
                        }
                    }
                    for (int k = 0; k < N; ++k) from_float(sum[k] / members, result.at[k]);
                }
                to_token[c] = result;
            }
        }
    }
}

#define COME_ROS_MERGE(name, In, Out, N)                                                                                    \
    extern "C" __global__ void __launch_bounds__(COME_ROS_THREADS)                                                          \
    name(const In* __restrict__ x, const Index* __restrict__ source, Out* __restrict__ out, Index rows, Index row_step,     \
         Index special, Index length, Index packs, Index height, Index width, Index group_height, Index group_width) {      \
        merge<In, Out, N>(x, source, out, rows, row_step, special, length, packs, {height, width, group_height, group_width}); \
    }

COME_ROS_MERGE(merge_float32, float, float, 1)
COME_ROS_MERGE(merge_float32_x4, float, float, 4)
COME_ROS_MERGE(merge_float16, Half, Half, 1)
COME_ROS_MERGE(merge_float16_x8, Half, Half, 8)
COME_ROS_MERGE(merge_bfloat16, BFloat16, BFloat16, 1)
COME_ROS_MERGE(merge_bfloat16_x8, BFloat16, BFloat16, 8)
COME_ROS_MERGE(merge_int32, int, float, 1)  // positions: a group's centre lies between patches
COME_ROS_MERGE(merge_int64, long long, float, 1)
