// What the token kernels share: where things lie, and element types. No framework and no other header: NVRTC has none at hand, and
// cuda_fp16.h is not installed everywhere. come_ros/kernels/compiled.py puts this text in place of its #include.
//
// Everything is counted in 64 bits: 512 frames of 1296 tokens of 4096 channels are more than 2^31 elements.
#ifndef COME_ROS_COMMON_CUH
#define COME_ROS_COMMON_CUH

#define COME_ROS_INDEX __host__ __device__ inline
#define COME_ROS_THREADS 256  // of a block, at most; as THREADS in compiled.py

typedef long long Index;

// Patches of one frame, row by row, and the groups that they form (reference.py: group_members).
struct Grid {
    Index height, width, group_height, group_width;
};

COME_ROS_INDEX Index patches(Grid g) { return g.height * g.width; }
COME_ROS_INDEX Index groups_down(Grid g) { return g.height / g.group_height; }
COME_ROS_INDEX Index groups_across(Grid g) { return g.width / g.group_width; }
COME_ROS_INDEX Index groups(Grid g) { return groups_down(g) * groups_across(g); }
COME_ROS_INDEX Index group_size(Grid g) { return g.group_height * g.group_width; }

// Element at which a token begins, of `tokens` tokens a row and `channels` elements a token.
COME_ROS_INDEX Index token_offset(Index row, Index token, Index tokens, Index channels) {
    return (row * tokens + token) * channels;
}

// The upper left patch of a group.
COME_ROS_INDEX Index first_member(Index group, Grid g) {
    const Index across = groups_across(g);
    return group / across * g.group_height * g.width + group % across * g.group_width;
}

// The j-th patch of a group, row by row.
COME_ROS_INDEX Index member(Index group, Index j, Grid g) {
    return first_member(group, g) + j / g.group_width * g.width + j % g.group_width;
}

// How many patches at the right and lower edge belong to no group.
COME_ROS_INDEX Index edge_patches(Grid g) { return patches(g) - groups(g) * group_size(g); }

// The e-th of them: first those right of the groups, then the rows below.
COME_ROS_INDEX Index edge_patch(Index e, Grid g) {
    const Index rows = groups_down(g) * g.group_height, columns = groups_across(g) * g.group_width;
    const Index beside = g.width - columns;  // of one row
    if (e < rows * beside) return e / beside * g.width + columns + e % beside;
    return rows * g.width + (e - rows * beside);
}

struct Half {
    unsigned short bits;
};

struct BFloat16 {
    unsigned short bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(int value) { return static_cast<float>(value); }
__device__ inline float to_float(long long value) { return static_cast<float>(value); }
__device__ inline float to_float(BFloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }

__device__ inline float to_float(Half value) {
#ifdef COME_ROS_HOST
    return host_half_to_float(value.bits);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#endif
}

// Rounded to the nearest, ties to even, like torch.
__device__ inline void from_float(float value, float& out) { out = value; }

__device__ inline void from_float(float value, Half& out) {
#ifdef COME_ROS_HOST
    out.bits = host_float_to_half(value);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#endif
}

__device__ inline void from_float(float value, BFloat16& out) {
    const unsigned bits = __float_as_uint(value);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;  // rounding could carry its payload into an infinity
    out.bits = static_cast<unsigned short>(nan ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

template <typename In, typename Out>
__device__ inline void convert(In value, Out& out) { from_float(to_float(value), out); }

template <typename T>
__device__ inline void convert(T value, T& out) { out = value; }  // every bit, also of a NaN

// N elements that travel as one access: with 16 bytes, the widest there is.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

#endif
