// cuda/*.cu as a shared library: every kernel, host_launch to run one, and the index arithmetic for itself. Built by conftest.py.
#include "host_shim.h"

#include "token_merge.cu"
#include "token_restore.cu"

#include <cstdint>
#include <utility>

using Word = std::uint64_t;  // every argument of a kernel is a pointer or a number of 64 bits, and CuPy hands it over as such

static void* entry;
static const Word* words;

template <std::size_t... I>
static void call(std::index_sequence<I...>) {
    reinterpret_cast<void (*)(decltype(static_cast<Word>(I))...)>(entry)(words[I]...);
}

template <std::size_t N>
static void call_with() {
    call(std::make_index_sequence<N>{});
}

// 0; 1 if the threads of a block disagree about a barrier; 2 if no kernel has so many arguments.
extern "C" int host_launch(void* kernel, const Word* arguments, int count, const unsigned* grid, const unsigned* block,
                           int descending) {
    entry = kernel;
    words = arguments;
    if (count == 8) host::kernel = call_with<8>;
    else if (count == 9) host::kernel = call_with<9>;
    else if (count == 12) host::kernel = call_with<12>;
    else return 2;
    gridDim = {grid[0], grid[1], 1};
    blockDim = {block[0], block[1], 1};
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
            if (!host::run_block(descending)) return 1;
    return 0;
}

extern "C" {
Index index_token_offset(Index row, Index token, Index tokens, Index channels) { return token_offset(row, token, tokens, channels); }
Index index_member(Index group, Index j, Grid g) { return member(group, j, g); }
Index index_edge_patch(Index e, Grid g) { return edge_patch(e, g); }
Index index_edge_patches(Grid g) { return edge_patches(g); }
Index index_groups(Grid g) { return groups(g); }
float host_from_half(unsigned short bits) { return to_float(Half{bits}); }
unsigned short host_to_half(float value) { Half out; from_float(value, out); return out.bits; }
float host_from_bfloat16(unsigned short bits) { return to_float(BFloat16{bits}); }
unsigned short host_to_bfloat16(float value) { BFloat16 out; from_float(value, out); return out.bits; }
}
