"""The checked calls of token merging: what they refuse, which way they choose, and what torch may do with them."""

import contextlib
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from come_ros.accelerators import CoMe
from come_ros.config import Config
from come_ros.errors import ConfigError
from come_ros.kernels import compiled, merge_layout, merge_positions, merge_tokens, reference, restore_tokens

GRID, GROUP, SPECIAL, LENGTH = (7, 6), (3, 3), 2, 42 - 2 * 8
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def example(rows=2, dtype=torch.float32):
    """x, positions, merged, source, rev: two groups of four merged in every row."""
    rng = torch.Generator().manual_seed(0)
    merged = torch.tensor([[True, False, True, False]]).repeat(rows, 1)
    source, rev = reference.merge_layout(merged, GRID, GROUP, LENGTH)
    x = torch.randn(rows, SPECIAL + 42, 16, generator=rng).to(dtype)
    return x, torch.randint(0, 9, (1, SPECIAL + 42, 2), generator=rng), merged, source, rev


@pytest.fixture
def forget():
    """What was chosen is asked again, before and after the test."""
    caches = (compiled._choice, compiled._obstacle, compiled._module, compiled._function)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, p, m, s, r: merge_layout(m[:, :3], GRID, GROUP, LENGTH), r"merged has shape \(2, 3\), but must have \(any, 4\)"),
        (lambda x, p, m, s, r: merge_layout(m.int(), GRID, GROUP, LENGTH), "merged is int32, but must be bool"),
        (lambda x, p, m, s, r: merge_layout(m, GRID, GROUP, 9), "length is 9, but 4 merged groups of 42 patches leave 10"),
        (lambda x, p, m, s, r: merge_layout(m, GRID, (0, 3), LENGTH), "at least one row"),
        (lambda x, p, m, s, r: merge_tokens(x[0], s, SPECIAL, GRID, GROUP), r"must have \(any, 44, any\)"),
        (lambda x, p, m, s, r: merge_tokens(x, s, 5, GRID, GROUP), r"must have \(any, 47, any\)"),
        (lambda x, p, m, s, r: merge_tokens(x.double(), s, SPECIAL, GRID, GROUP), "x is float64, but must be float32, float16, bf"),
        (lambda x, p, m, s, r: merge_tokens(x, s.int(), SPECIAL, GRID, GROUP), "source is int32, but must be int64"),
        (lambda x, p, m, s, r: merge_tokens(x, s[:1], SPECIAL, GRID, GROUP), r"source has shape \(1, 26\)"),
        (lambda x, p, m, s, r: merge_tokens(x.mT.contiguous().mT, s, SPECIAL, GRID, GROUP), r"call \.contiguous\(\)"),
        (lambda x, p, m, s, r: merge_tokens(x, s.to("meta"), SPECIAL, GRID, GROUP), "source is on meta, but the other"),
        (lambda x, p, m, s, r: merge_positions(p.repeat(3, 1, 1), s, SPECIAL, GRID, GROUP), r"positions has shape \(3, 44, 2\)"),
        (lambda x, p, m, s, r: merge_positions(p.half(), s, SPECIAL, GRID, GROUP), "must be float32, int32, int64"),
        (lambda x, p, m, s, r: restore_tokens(x, r[:1], SPECIAL), r"rev has shape \(1, 42\)"),
        (lambda x, p, m, s, r: restore_tokens(x, r, 50), "x has 44 tokens a row, but special is 50"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_with_a_fix(change, said):
    with pytest.raises(ValueError, match=said):
        change(*example())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 0])
def test_the_operations_of_torch_are_the_twins_on_the_cpu(dtype, rows):
    """And say rightly what shapes and types come out: then torch.compile can trust them."""
    x, p, merged, source, rev = example(rows, dtype)
    short = merge_tokens(x, source, SPECIAL, GRID, GROUP)
    ops = torch.ops.come_ros
    for op, arguments, want in (
        (ops.merge_layout, (merged, GRID, GROUP, LENGTH), (source, rev)),
        (ops.merge_tokens, (x, source, SPECIAL, GRID, GROUP), short),
        (ops.merge_positions, (p, source, SPECIAL, GRID, GROUP), merge_positions(p, source, SPECIAL, GRID, GROUP)),
        (ops.restore_tokens, (short, rev, SPECIAL), restore_tokens(short, rev, SPECIAL)),
    ):
        torch.testing.assert_close(op(*arguments), want, rtol=0, atol=0)
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def round_trip(x, p, merged, kernels="auto"):
    source, rev = merge_layout(merged, GRID, GROUP, LENGTH, kernels)
    short = merge_tokens(x, source, SPECIAL, GRID, GROUP, kernels)
    positions = merge_positions(p, source, SPECIAL, GRID, GROUP, kernels)
    return restore_tokens(short, rev, SPECIAL, kernels), positions


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("way", ["torch", "operations"])
def test_torch_compiles_them_into_one_graph(way, monkeypatch):
    if way == "operations":  # as chosen on CUDA
        monkeypatch.setattr(compiled, "_choice", lambda *asked: "cupy")
    x, p, merged, *_ = example()
    torch._dynamo.reset()
    graph = torch.compile(round_trip, fullgraph=True, backend="eager")
    for got, want in zip(graph(x, p, merged), round_trip(x, p, merged), strict=True):
        assert torch.equal(got, want)


def test_the_twins_can_be_trained_through():
    x, _, _, source, rev = example()
    x.requires_grad_()
    restore_tokens(merge_tokens(x, source, SPECIAL, GRID, GROUP), rev, SPECIAL).sum().backward()
    # each patch reaches as many places as before, or its group's nine a ninth each
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_cupy_where_it_cannot_be_is_a_loud_error(forget, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    x, _, _, source, _ = example()
    with pytest.raises(
        ConfigError, match=r"the tensors are on cpu: it needs a CUDA device .*pip install cupy-cuda1\dx"
    ):
        merge_tokens(x, source, SPECIAL, GRID, GROUP, kernels="cupy")
    with pytest.raises(ConfigError, match=r"kernels is cupy, but CuPy cannot be imported .*pip install cupy-cuda1\dx"):
        compiled.choose("cupy", CUDA)
    with pytest.raises(ConfigError, match="must be one of auto, cupy, torch"):
        compiled.choose("numpy", CPU)
    with pytest.raises(ConfigError, match="kernels is cupy"):
        CoMe(torch.nn.Identity(), 0, kernels="cupy").to(CPU)


def test_auto_without_cupy_is_torch_and_said_once(forget, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with caplog.at_level(logging.INFO, "come_ros"):
        assert [compiled.choose("auto", device) for device in (CUDA, CUDA, CPU)] == ["torch"] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pip install cupy" in caplog.text


def test_the_parameter_reaches_the_accelerator():
    accelerator = CoMe(torch.nn.Identity(), 0, kernels="torch")
    other = accelerator.configured(Config().replace(**{"accelerator.ratio": 0.25}))
    assert other is not accelerator and other.kernels == "torch" and other.ratio == 0.25


class FakeCuPy(SimpleNamespace):
    """As much of CuPy as compiled.py uses; kernels run on the host. `modern`: as from CuPy 14 on."""

    __version__ = "0"

    def __init__(self, host, modern):
        self.host, self.modules, self.streams, self.launched = host, [], [], []
        self.cuda = SimpleNamespace(Device=lambda index: contextlib.nullcontext(), Stream=SimpleNamespace())
        if modern:
            self.cuda.Stream.from_external = lambda stream: self._stream(stream.__cuda_stream__()[1])
        else:
            self.cuda.ExternalStream = lambda handle, index: self._stream(handle)

    def _stream(self, handle):
        self.streams.append(handle)
        return contextlib.nullcontext()

    def RawModule(self, code, options):
        assert "\n#include" not in code and options == compiled.OPTIONS
        self.modules.append(code)

        def function(name):
            assert f"{name}(" in code or f"{name}," in code

            def run(grid, block, words):
                self.launched.append(name)
                self.host.launch(compiled.Launch(name, grid, block, tuple(int(word) for word in words)))

            run.num_regs = 32
            return run

        return SimpleNamespace(get_function=function)


@pytest.mark.parametrize("modern", [True, False])
def test_cupy_is_told_what_the_host_build_is_told(host, forget, monkeypatch, modern):
    cupy = FakeCuPy(host, modern)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1234 + index))
    assert compiled.choose("auto", CUDA) == compiled.choose("cupy", CUDA) == "cupy"
    assert len(cupy.modules) == len(set(compiled.KERNELS.values()))  # each file compiled once
    x, _, _, source, _ = example()
    out = torch.empty(2, SPECIAL + LENGTH, 16)
    compiled.launch(compiled.merge_launch(x, source, out, SPECIAL, GRID, GROUP), CUDA)
    assert cupy.launched == ["merge_float32_x4"] and cupy.streams == [1234]
    torch.testing.assert_close(out, reference.merge_tokens(x, source, SPECIAL, GRID, GROUP))


def test_kernels_that_cannot_be_compiled_are_an_obstacle(host, forget, monkeypatch):
    cupy = FakeCuPy(host, True)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(
        cupy, "RawModule", lambda **_: (_ for _ in ()).throw(RuntimeError("no libnvrtc.so\nand much more"))
    )
    assert compiled.choose("auto", CUDA) == "torch"
    with pytest.raises(ConfigError, match=r"CuPy 0 cannot compile or load the kernels for cuda:0 \(no libnvrtc.so\)"):
        compiled.choose("cupy", CUDA)


def test_sources_are_found_installed_and_in_a_checkout(tmp_path, monkeypatch):
    for place in ("come_ros/cuda", "cuda"):
        root = tmp_path / place.replace("/", "_")
        (root / place).mkdir(parents=True)
        (root / place / "common.cuh").touch()
        monkeypatch.setattr(compiled, "__file__", str(root / "come_ros" / "kernels" / "compiled.py"))
        assert compiled._folder() == root / place
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "nowhere" / "kernels" / "compiled.py"))
    with pytest.raises(FileNotFoundError, match="reinstall come_ros"):
        compiled._folder()
