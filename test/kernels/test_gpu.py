"""The kernels on a GPU, as CuPy compiles them: each equal to its twin, on torch's stream, in graphs, without waiting for the host."""

import contextlib

import pytest
import torch

from come_ros.accelerators import CoMe, Tokens
from come_ros.kernels import choose, compiled, merge_layout, merge_positions, merge_tokens, reference, restore_tokens

pytestmark = pytest.mark.gpu

GRID, GROUP, SPECIAL = (11, 10), (3, 3), 5  # whole groups, and edges on both sides
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def device():
    if not torch.cuda.is_available():
        pytest.skip("no usable CUDA device; the host build tests the kernels' arithmetic")
    pytest.importorskip("cupy", reason="there is a CUDA device, but no CuPy: pip install cupy-cuda12x or cupy-cuda13x")
    found = torch.device("cuda", torch.cuda.current_device())
    assert choose("cupy", found) == "cupy"
    return found


def example(rows=4, k=4, width=64, dtype=torch.float32, seed=0):
    """On the CPU: x, positions, and a mask that merges k of the 9 groups of each row."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, SPECIAL + 110, width, generator=rng).to(dtype)
    merged = torch.rand(rows, 9, generator=rng).argsort(1) < k
    return x, torch.randint(0, 12, (1, SPECIAL + 110, 2), generator=rng), merged


def length_of(k):
    return 110 - k * 8


def round_trip(x, positions, merged, k=4, kernels="cupy"):
    """All four operations: source, rev, merged tokens, merged positions, restored tokens."""
    source, rev = merge_layout(merged, GRID, GROUP, length_of(k), kernels)
    short = merge_tokens(x, source, SPECIAL, GRID, GROUP, kernels)
    places = merge_positions(positions, source, SPECIAL, GRID, GROUP, kernels)
    return source, rev, short, places, restore_tokens(short, rev, SPECIAL, kernels)


def assert_same(got, want):
    """Indices exactly; tokens up to the rounding of a mean."""
    for ours, theirs in zip(got, want, strict=True):
        near = 0 if ours.dtype == torch.long else 2 * torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours.cpu(), theirs, rtol=near, atol=1e-6 * (near > 0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [1024, 64, 33, 1])
@pytest.mark.parametrize(("rows", "k"), [(4, 4), (3, 0), (3, 9), (0, 4)])
def test_kernels_are_their_twins(device, dtype, width, rows, k):
    x, positions, merged = example(rows, k, width, dtype)
    want = round_trip(x, positions, merged, k, "torch")
    assert_same(round_trip(x.to(device), positions.to(device), merged.to(device), k), want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_that_begin_anywhere_are_written_fully_and_not_beyond(device, dtype):
    x, _, merged = example(dtype=dtype)
    source, rev = reference.merge_layout(merged, GRID, GROUP, length_of(4))
    short = reference.merge_tokens(x, source, SPECIAL, GRID, GROUP)

    def placed(values):
        """In the middle of NaNs, one element after a 16-byte boundary."""
        memory = torch.full((values.numel() + 129,), torch.nan, dtype=dtype, device=device)
        return memory, memory[65 : 65 + values.numel()].view(values.shape)

    for values, want, make in (
        (x, short, lambda a, b: compiled.merge_launch(a, source.to(device), b, SPECIAL, GRID, GROUP)),
        (short, x, lambda a, b: compiled.restore_launch(a, rev.to(device), b, SPECIAL)),
    ):
        _, given = placed(values)
        memory, out = placed(want)
        compiled.launch(make(given.copy_(values), out), device)
        want = want if want is short else reference.restore_tokens(short, rev, SPECIAL)
        assert_same([out], [want])
        assert memory[:65].isnan().all() and memory[65 + want.numel() :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_positions_of_each_type(device, dtype):
    _, positions, merged = example()
    source, _ = reference.merge_layout(merged, GRID, GROUP, length_of(4))
    for p in (positions.to(dtype), positions.to(dtype).repeat(4, 1, 1)):
        got = merge_positions(p.to(device), source.to(device), SPECIAL, GRID, GROUP, "cupy")
        assert_same([got], [reference.merge_positions(p, source, SPECIAL, GRID, GROUP)])


def test_a_captured_graph_follows_its_inputs(device):
    given = [t.to(device) for t in example(dtype=torch.bfloat16)]
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        round_trip(*given)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = round_trip(*given)
    for seed in (1, 2):
        fresh = example(dtype=torch.bfloat16, seed=seed)
        for static, new in zip(given, fresh, strict=True):
            static.copy_(new)
        graph.replay()
        assert_same(out, round_trip(*fresh, kernels="torch"))


def test_torch_compiles_without_a_break(device):
    torch._dynamo.reset()
    given = example()
    compiled_trip = torch.compile(round_trip, fullgraph=True, backend="aot_eager")
    assert_same(compiled_trip(*(t.to(device) for t in given)), round_trip(*given, kernels="torch"))


@contextlib.contextmanager
def no_synchronisation():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_nothing_waits_for_the_host(device):
    given = [t.to(device) for t in example()]
    with no_synchronisation():
        round_trip(*given)


@pytest.mark.parametrize("kernels", ["cupy", "torch"])
def test_a_window_of_come_is_planned_and_merged_without_waiting(device, kernels):
    class Sure(torch.nn.Module):
        def forward(self, patches):
            return patches.float().mean(-1)

    accelerator = CoMe(Sure(), 0, kernels=kernels).to(device)
    x, positions, _ = (t.to(device) for t in example())
    tokens = Tokens(x[None], positions[None], SPECIAL, GRID)

    def window():
        plan = accelerator.plan(tokens)
        short, plan = accelerator.compress(tokens, plan, "encoder_k")
        return accelerator.restore(short, plan, "encoder_end")[0].x

    first = window()  # the groups' members are looked up once, on the host
    with no_synchronisation():
        again = window()
    assert torch.equal(first, again)


def test_kernels_wait_for_what_their_stream_did_before(device):
    x, positions, merged = example()
    want = round_trip(x, positions, merged, kernels="torch")
    values, x = x.to(device), torch.zeros_like(x, device=device)
    positions, merged = positions.to(device), merged.to(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # cycles: tens of milliseconds
        x.copy_(values)
        out = round_trip(x, positions, merged)
    side.synchronize()
    assert_same(out, want)


def test_tensors_on_another_than_the_current_device(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("only one CUDA device")
    other = torch.device("cuda", (device.index + 1) % torch.cuda.device_count())
    given = example()
    assert_same(round_trip(*(t.to(other) for t in given)), round_trip(*given, kernels="torch"))
    assert torch.cuda.current_device() == device.index


def test_tensors_of_more_than_2_to_31_elements(device):
    rows, grid, width = 410, (36, 36), 4096
    if torch.cuda.mem_get_info(device)[0] < 16 * 2**30:
        pytest.skip("less than 16 GiB of GPU memory are free")
    x = torch.randint(-100, 100, (rows, 1296, width), dtype=torch.int8, device=device).bfloat16()
    assert x.numel() > 2**31
    merged = torch.rand(rows, 144, device=device).argsort(1) < 72
    source, rev = merge_layout(merged, grid, (3, 3), 720, "cupy")
    short = merge_tokens(x, source, 0, grid, (3, 3), "cupy")
    back = restore_tokens(short, rev, 0, "cupy")
    last = slice(rows - 2, rows)
    want = reference.merge_tokens(x[last].cpu(), source[last].cpu(), 0, grid, (3, 3))
    assert_same([short[last], back[last]], [want, reference.restore_tokens(want, rev[last].cpu(), 0)])
