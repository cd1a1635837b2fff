// The way back from token merging: every patch gets its token, or its group's. Twin: come_ros/kernels/reference.py.
#include "common.cuh"

// x: (rows, special + length, units) -> out: (rows, special + patches, units), by rev (rows, patches). Bytes are copied as they are,
// whatever they mean, in the widest unit that fits. Threads and blocks as in token_merge.cu.
template <typename Unit>
__device__ void restore(const Unit* x, const Index* __restrict__ rev, Unit* out, Index rows, Index special, Index length,
                        Index patches, Index units) {
    for (Index row = blockIdx.y; row < rows; row += gridDim.y) {
        const Index step = static_cast<Index>(gridDim.x) * blockDim.y;
        for (Index token = static_cast<Index>(blockIdx.x) * blockDim.y + threadIdx.y; token < special + patches; token += step) {
            const Index from = token < special ? token : special + rev[row * patches + token - special];
            if (from < 0 || from >= special + length) continue;  // no place of a merged row: the caller's mistake
            const Unit* const from_token = x + token_offset(row, from, special + length, units);
            Unit* const to_token = out + token_offset(row, token, special + patches, units);
            for (Index c = threadIdx.x; c < units; c += blockDim.x) to_token[c] = from_token[c];
        }
    }
}

#define COME_ROS_RESTORE(name, Unit)                                                                                       \
    extern "C" __global__ void __launch_bounds__(COME_ROS_THREADS)                                                         \
    name(const Unit* __restrict__ x, const Index* __restrict__ rev, Unit* __restrict__ out, Index rows, Index special,     \
         Index length, Index patches, Index units) {                                                                       \
        restore<Unit>(x, rev, out, rows, special, length, patches, units);                                                 \
    }

typedef Pack<unsigned, 4> Bytes16;  // a name without a comma, for the macro

COME_ROS_RESTORE(restore_1, unsigned char)
COME_ROS_RESTORE(restore_2, unsigned short)
COME_ROS_RESTORE(restore_4, unsigned)
COME_ROS_RESTORE(restore_8, unsigned long long)
COME_ROS_RESTORE(restore_16, Bytes16)
