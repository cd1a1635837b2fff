// The words of CUDA for a plain C++ compiler, to run the kernels on the host, one thread after another (host_build.cpp).
//
// A block's threads are fibers, so that __syncthreads can put one aside until all others have come as far. They run in ascending or
// descending order; a kernel whose result depends on it has a race.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstring>
#include <vector>

#define COME_ROS_HOST
#define __host__
#define __device__
#define __global__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(threads)

struct Place {
    unsigned x, y, z;
};
inline Place threadIdx, blockIdx, blockDim, gridDim;

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// What the GPU does in one instruction: IEEE half precision, rounded to the nearest, ties to even.
inline float host_half_to_float(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
    // as the fraction of a tiny float it has the right digits; scaling mends the exponent, also of subnormals
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
}

inline unsigned short host_float_to_half(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7fffu;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {  // a subnormal: adding 2^-1 leaves its digits, rounded, at the end of the fraction
        const float shifted = __uint_as_float(magnitude) + 0.5f;
        return static_cast<unsigned short>(sign | (__float_as_uint(shifted) - 0x3f000000u));
    }
    const unsigned rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
    return static_cast<unsigned short>(sign | rounded >> 13);
}

namespace host {

enum State { READY, WAITING, DONE };

struct Fiber {
    ucontext_t context;
    Place place;
    State state;
};

inline constexpr std::size_t STACK = 64 * 1024;
inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline std::vector<char> stacks;
inline Fiber* current;
inline void (*kernel)();  // with its arguments

inline void run_thread() {
    kernel();
    current->state = DONE;
}

// False if some threads waited at a barrier that others never reached.
inline bool run_block(bool descending) {
    const std::size_t count = blockDim.x * blockDim.y;
    fibers.resize(count);
    stacks.resize(count * STACK);
    for (std::size_t i = 0; i < count; ++i) {
        Fiber& fiber = fibers[i];
        fiber.place = {static_cast<unsigned>(i % blockDim.x), static_cast<unsigned>(i / blockDim.x), 0};
        fiber.state = READY;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks.data() + i * STACK;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, run_thread, 0);
    }
    for (;;) {
        std::size_t waiting = 0;
        for (std::size_t n = 0; n < count; ++n) {
            current = &fibers[descending ? count - 1 - n : n];
            current->state = READY;
            threadIdx = current->place;
            swapcontext(&scheduler, &current->context);
            waiting += current->state == WAITING;
        }
        if (waiting == 0) return true;
        if (waiting != count) return false;
    }
}

}  // namespace host

inline void __syncthreads() {
    host::current->state = host::WAITING;
    swapcontext(&host::current->context, &host::scheduler);
}
