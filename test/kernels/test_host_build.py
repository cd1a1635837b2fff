"""The arithmetic and the indexing of cuda/*.cu, without a GPU: built by g++, each kernel against its torch twin."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.kernels import compiled, reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
groups = st.sampled_from([(1, 1), (2, 2), (3, 3), (1, 4), (2, 3)])
ratios = st.sampled_from([0.0, 0.5, 1.0])
rows = st.integers(0, 3)
specials = st.integers(0, 2)
channels = st.sampled_from([1, 2, 3, 5, 8, 16, 33, 40])
seeds = st.integers(0, 2**31)
# elements by which a tensor begins after a 16-byte boundary
shifts = st.sampled_from([0, 1])


class Guarded:
    """A tensor within a larger one of bytes 0xff (NaN, or -1): what is read or written next to it shows."""

    def __init__(self, shape, dtype, shift=0):
        size = dtype.itemsize
        count = torch.Size(shape).numel() * size
        self.begin = 64 + shift * size
        self.end = self.begin + count
        self.memory = torch.full((self.end + 64 + -self.end % 64,), 0xFF, dtype=torch.uint8)
        self.tensor = self.memory[self.begin : self.end].view(dtype).view(shape)

    @classmethod
    def holding(cls, values, shift=0):
        guarded = cls(values.shape, values.dtype, shift)
        guarded.tensor.copy_(values)
        return guarded.tensor

    def checked(self):
        """The tensor, if nothing next to it was written."""
        assert (self.memory[: self.begin] == 0xFF).all() and (self.memory[self.end :] == 0xFF).all()
        return self.tensor


def layout(rng, row_count, grid, group, ratio, extra=0):
    """A random mask and its layout by the twin; `extra`: padding in the longest row."""
    many = (grid[0] // group[0]) * (grid[1] // group[1])
    merged = torch.rand(row_count, many, generator=rng) < ratio
    fewest = int(merged.sum(1).min()) if row_count and many else 0
    length = grid[0] * grid[1] - fewest * (group[0] * group[1] - 1) + extra
    return merged, *reference.merge_layout(merged, grid, group, length)


@pytest.mark.slow
@given(grids, groups, rows, ratios, st.integers(0, 2), st.sampled_from([1, 5, 8, 256]), seeds)
@settings(max_examples=120)
def test_layout_is_its_twin_in_whatever_order_threads_run(host, grid, group, row_count, ratio, extra, threads, seed):
    merged, want_source, want_rev = layout(torch.Generator().manual_seed(seed), row_count, grid, group, ratio, extra)
    mask = Guarded.holding(merged)
    for descending in (False, True):
        source, rev = Guarded(want_source.shape, torch.long), Guarded(want_rev.shape, torch.long)
        kernel = compiled.merge_layout_launch(mask, source.tensor, rev.tensor, grid, group)
        kernel = kernel._replace(grid=(min(kernel.grid[0], 2), 1), block=(threads, 1))  # rows share blocks
        host.launch(kernel, descending=descending)
        assert torch.equal(source.checked(), want_source) and torch.equal(rev.checked(), want_rev)


def test_a_length_that_is_too_short_writes_nothing_beyond_its_row(host):
    merged = torch.tensor([[True, False, False, False]])
    source, rev = Guarded((1, 20), torch.long), Guarded((1, 42), torch.long)
    host.launch(compiled.merge_layout_launch(merged, source.tensor, rev.tensor, (7, 6), (3, 3)))
    want, _ = reference.merge_layout(merged, (7, 6), (3, 3), 42 - 8)
    assert torch.equal(source.checked(), want[:, :20])
    rev.checked()


@given(st.sampled_from(FLOATS), grids, groups, rows, specials, channels, ratios, shifts, shifts, seeds)
@settings(max_examples=200)
def test_merge_is_its_twin(host, dtype, grid, group, row_count, special, width, ratio, x_shift, out_shift, seed):
    rng = torch.Generator().manual_seed(seed)
    _, source, _ = layout(rng, row_count, grid, group, ratio, extra=1)
    x = Guarded.holding(torch.randn(row_count, special + grid[0] * grid[1], width, generator=rng).to(dtype), x_shift)
    want = reference.merge_tokens(x, source, special, grid, group)
    out = Guarded(want.shape, dtype, out_shift)
    if want.numel():
        kernel = compiled.merge_launch(x, source, out.tensor, special, grid, group)
        assert ("_x" in kernel.name) == (width * dtype.itemsize % 16 == 0 and not x_shift and not out_shift)
        host.launch(kernel)
    got = out.checked()
    # a mean may be rounded to the other neighbour, since torch adds in another order; all else is copied
    torch.testing.assert_close(got, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    copied = torch.nn.functional.pad(source < grid[0] * grid[1], (special, 0), value=True)
    assert torch.equal(got[copied], want[copied])


@given(st.sampled_from([torch.int32, torch.int64, torch.float32]), grids, groups, rows, specials, ratios, seeds)
@settings(max_examples=60)
def test_merged_positions_are_the_centres_of_their_groups(host, dtype, grid, group, row_count, special, ratio, seed):
    rng = torch.Generator().manual_seed(seed)
    _, source, _ = layout(rng, row_count, grid, group, ratio)
    for position_rows in {1, row_count}:
        p = torch.randint(0, 1000, (position_rows, special + grid[0] * grid[1], 2), generator=rng)
        p = Guarded.holding(p.to(dtype))
        want = reference.merge_positions(p, source, special, grid, group)
        out = Guarded(want.shape, torch.float32)
        if want.numel():
            host.launch(compiled.merge_launch(p, source, out.tensor, special, grid, group))
        torch.testing.assert_close(out.checked(), want, rtol=1e-6, atol=0)


COPIED = (*FLOATS, torch.float64, torch.int64, torch.uint8)


@given(st.sampled_from(COPIED), grids, groups, rows, specials, channels, ratios, shifts, shifts, seeds)
@settings(max_examples=120)
def test_restore_is_its_twin(host, dtype, grid, group, row_count, special, width, ratio, x_shift, out_shift, seed):
    rng = torch.Generator().manual_seed(seed)
    _, source, rev = layout(rng, row_count, grid, group, ratio)
    x = torch.randint(0, 255, (row_count, special + source.shape[1], width), generator=rng)
    x = Guarded.holding(x.to(dtype), x_shift)
    want = reference.restore_tokens(x, rev, special)
    out = Guarded(want.shape, dtype, out_shift)
    if want.numel():
        host.launch(compiled.restore_launch(x, rev, out.tensor, special))
    assert torch.equal(out.checked(), want)


def test_indices_that_lead_nowhere_read_nothing(host):
    """Only a mistake of the caller makes them, which the host cannot see without waiting for the GPU."""
    x = Guarded.holding(torch.randn(1, 2 + 9, 8))
    source = torch.tensor([[3, 9, 10, 2**40, -1, -(2**40)]])  # a patch, the only group, and four that are none
    short = Guarded((1, 2 + 6, 8), torch.float32)
    host.launch(compiled.merge_launch(x, source, short.tensor, 2, (3, 3), (3, 3)))
    want = torch.stack((x[0, 5], x[0, 2:].mean(0), *torch.zeros(4, 8)))
    torch.testing.assert_close(short.checked()[0, 2:], want)
    back = Guarded((1, 2 + 3, 8), torch.float32)
    rev = torch.tensor([[0, 6, 2**40]])
    host.launch(compiled.restore_launch(short.tensor, rev, back.tensor, 2))
    assert torch.equal(back.checked()[0, :3], short.tensor[0, :3]) and back.tensor[0, 3:].isnan().all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_where_nothing_is_merged_every_bit_comes_back(host, dtype):
    """Also of NaNs and infinities: what is copied is not converted."""
    grid, group, special = (6, 6), (3, 3), 1
    x = torch.randint(-(2**15), 2**15, (2, 37, 16 * 2 // dtype.itemsize), dtype=torch.int16).view(dtype)
    merged = torch.zeros(2, 4, dtype=torch.bool)
    source, rev = reference.merge_layout(merged, grid, group, 36)
    short, back = torch.empty_like(x), torch.empty_like(x)
    host.launch(compiled.merge_launch(x, source, short, special, grid, group))
    host.launch(compiled.restore_launch(short, rev, back, special))
    assert torch.equal(back.view(torch.int16), x.view(torch.int16))


def test_more_rows_tokens_and_channels_than_threads_are_strided_over(host, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_ROWS", 2)
    monkeypatch.setattr(compiled, "MOST_BLOCKS", 1)
    monkeypatch.setattr(compiled, "THREADS", 8)
    rng = torch.Generator().manual_seed(0)
    grid, group, special = (9, 8), (2, 2), 3
    merged, source, rev = layout(rng, 7, grid, group, 0.5)
    x = torch.randn(7, special + 72, 44, generator=rng)
    short = Guarded((7, special + source.shape[1], 44), torch.float32)
    kernel = compiled.merge_launch(x, source, short.tensor, special, grid, group)
    assert kernel.grid == (1, 2) and kernel.block == (4, 2)
    host.launch(kernel)
    want = reference.merge_tokens(x, source, special, grid, group)
    torch.testing.assert_close(short.checked(), want)
    back = Guarded(x.shape, torch.float32)
    host.launch(compiled.restore_launch(short.tensor, rev, back.tensor, special))
    assert torch.equal(back.checked(), reference.restore_tokens(short.tensor, rev, special))
    source_again, rev_again = torch.empty_like(source), torch.empty_like(rev)
    kernel = compiled.merge_layout_launch(merged, source_again, rev_again, grid, group)
    assert kernel.grid == (1, 1)
    host.launch(kernel)
    assert torch.equal(source_again, source) and torch.equal(rev_again, rev)


def test_the_operations_run_the_kernels(host, monkeypatch):
    """From the arguments of an operation to its result, as on CUDA; empty results launch nothing."""
    launched = []
    monkeypatch.setattr(compiled, "launch", lambda kernel, device: (launched.append(kernel.name), host.launch(kernel)))
    rng = torch.Generator().manual_seed(3)
    grid, group, special = (7, 6), (3, 3), 5
    for row_count in (2, 0):
        launched.clear()
        merged, want_source, want_rev = layout(rng, row_count, grid, group, 0.5)
        source, rev = compiled._merge_layout(merged, grid, group, want_source.shape[1])
        assert torch.equal(source, want_source) and torch.equal(rev, want_rev)
        x = torch.randn(row_count, special + 42, 32, generator=rng).bfloat16()
        short = compiled._merge_tokens(x, source, special, grid, group)
        torch.testing.assert_close(short, reference.merge_tokens(x, source, special, grid, group))
        p = torch.randint(0, 9, (1, special + 42, 2), generator=rng)
        torch.testing.assert_close(
            compiled._merge_positions(p, source, special, grid, group),
            reference.merge_positions(p, source, special, grid, group),
        )
        assert torch.equal(compiled._restore_tokens(short, rev, special), reference.restore_tokens(short, rev, special))
        names = ["merge_layout", "merge_bfloat16_x8", "merge_int64", "restore_16"]
        assert launched == (names if row_count else [])


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat16", torch.bfloat16)])
def test_short_floats_are_read_and_rounded_like_torch(host, name, dtype):
    read, write = host.library[f"host_from_{name}"], host.library[f"host_to_{name}"]
    read.argtypes, read.restype = [ctypes.c_ushort], ctypes.c_float
    write.argtypes, write.restype = [ctypes.c_float], ctypes.c_ushort
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    wide = every.view(dtype).float()
    got = torch.tensor([read(i & 0xFFFF) for i in every.tolist()])
    assert torch.equal(got.isnan(), wide.isnan()) and torch.equal(got[~wide.isnan()], wide[~wide.isnan()])
    # every value, the middle to its neighbour (a tie), and a little to both sides of that
    finite = wide[wide.isfinite()].sort().values
    middle = (finite[:-1] + finite[1:]) / 2
    up = middle.nextafter(torch.tensor(torch.inf))
    down = middle.nextafter(torch.tensor(-torch.inf))
    beyond = torch.tensor([3.4e38, -3.4e38, 65519.99, 65520.0, 1e-45, torch.inf, -torch.inf, torch.nan])
    values = torch.cat((finite, middle, up, down, beyond))
    want = values.to(dtype)
    got = torch.tensor([write(v) for v in values.tolist()], dtype=torch.int32).to(torch.int16).view(dtype)
    real = ~values.isnan()
    assert torch.equal(got[real].view(torch.int16), want[real].view(torch.int16)) and got[~real].isnan().all()


class Grid(ctypes.Structure):
    _fields_ = [(name, ctypes.c_longlong) for name in ("height", "width", "group_height", "group_width")]


def index(host, name):
    function = host.library[f"index_{name}"]
    function.restype = ctypes.c_longlong
    return lambda *arguments: function(*(a if isinstance(a, Grid) else ctypes.c_longlong(a) for a in arguments))


@given(*(st.integers(0, 2**15 - 1) for _ in range(4)))
@settings(max_examples=50)
def test_offsets_of_tokens_reach_past_32_bits(host, row, token, tokens, width):
    assert index(host, "token_offset")(row, token, tokens, width) == (row * tokens + token) * width


def test_offsets_at_the_size_of_real_work(host):
    assert index(host, "token_offset")(511, 1300, 1301, 4096) == (511 * 1301 + 1300) * 4096 > 2**31


@given(st.integers(1, 2**17), st.integers(1, 2**17), st.integers(1, 2**9), st.integers(1, 2**9), st.data())
@settings(max_examples=100)
def test_members_and_edges_of_grids_beyond_32_bits(host, height, width, rows_of_group, columns_of_group, data):
    grid = Grid(height, width, rows_of_group, columns_of_group)
    down, across = height // rows_of_group, width // columns_of_group
    size = rows_of_group * columns_of_group
    assert index(host, "groups")(grid) == down * across
    assert index(host, "edge_patches")(grid) == height * width - down * across * size
    if down * across:
        group = data.draw(st.integers(0, down * across - 1))
        j = data.draw(st.integers(0, size - 1))
        y = group // across * rows_of_group + j // columns_of_group
        x = group % across * columns_of_group + j % columns_of_group
        assert index(host, "member")(group, j, grid) == y * width + x
    edges = height * width - down * across * size
    if edges:
        e = data.draw(st.integers(0, edges - 1))
        patch = index(host, "edge_patch")(e, grid)
        y, x = divmod(patch, width)
        assert y < height and (y >= down * rows_of_group or x >= across * columns_of_group)
        # as many edge patches lie before it
        whole_before = min(y, down * rows_of_group) * across * columns_of_group
        if y < down * rows_of_group:
            whole_before += min(x, across * columns_of_group)
        assert patch - whole_before == e


def test_a_grid_of_more_than_2_to_31_patches(host):
    grid = Grid(2**17, 2**17, 3, 3)
    last = (2**17 // 3) ** 2 - 1
    y = x = 2**17 // 3 * 3 - 1
    assert index(host, "member")(last, 8, grid) == y * 2**17 + x > 2**33
    assert index(host, "edge_patch")(index(host, "edge_patches")(grid) - 1, grid) == 2**34 - 1
