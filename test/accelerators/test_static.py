"""The promise of a fixed count per frame: equal shapes in every window, no wait for the device, one compilation.

So the accelerated model can be captured as a CUDA graph and compiled once.
"""

import pytest
import torch
from models import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from come_ros.accelerators import CoMe
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.backbones.vggt import VGGT

# what cannot go on before the device has told a value, or how many there are
WAITS = (
    "local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique",
    "bincount",
    "linalg_check_errors",
)


class Watch(TorchDispatchMode):
    """shapes: of everything that any operation gave. waits: the operations that wait for the device."""

    def __init__(self):
        super().__init__()
        self.shapes, self.waits = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        masks = (
            [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in ("index", "index_put_") else []
        )
        # repeat_interleave by a tensor has to add it up, unless it is told the sum
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name.strip("_").startswith(WAITS) or masks or counted:
            self.waits.append(name)
        many = out if isinstance(out, (tuple, list)) else (out,)
        self.shapes += [(name, tuple(t.shape), t.stride(), t.dtype) for t in many if isinstance(t, torch.Tensor)]
        return out


@pytest.fixture(scope="module")
def model():
    return tiny("vggt", depth=1, taps=(0, 0, 0, 0))


def come(**more):
    torch.manual_seed(1)
    return CoMe(ConfidencePredictor(48, 8).eval(), 0, **{"group": (2, 2), **more})


def images(seed, device="cpu"):
    x = torch.rand(2, 3, 3, 56, 70, generator=torch.Generator().manual_seed(seed))
    return (x * seed).clamp(max=1).to(device)


def watched(model, x, accelerator):
    with torch.no_grad(), Watch() as watch:  # in inference mode, composed operations are not taken apart
        trunk = model.run_trunk(x, accelerator)
    return trunk, watch


FIXED = [
    {"mode": mode, "ratio": ratio, "group": group}
    for mode in ("fused", "per_layer")
    for ratio, group in ((0.5, (2, 2)), (1.0, (3, 2)), (0.75, (1, 4)))
]


@pytest.mark.parametrize("how", FIXED, ids=lambda how: "-".join(map(str, how.values())))
def test_equal_windows_give_equal_shapes_and_nothing_waits_for_the_device(model, how):
    # the very first window also makes the tables that are kept
    _, (first, a), (second, b) = (watched(model, images(seed), come(**how)) for seed in (3, 1, 2))
    assert (first.plan.merged != second.plan.merged).any() or how["ratio"] == 1  # other groups are merged
    assert a.shapes == b.shapes and len(a.shapes) > 200
    assert a.waits == b.waits == []


def test_the_watch_sees_what_waits(model):
    """A window's budget pads frames to the longest one, which only the device knows."""
    _, watch = watched(model, images(1), come(budget="window"))
    assert "_local_scalar_dense" in watch.waits
    x = torch.arange(4)
    with Watch() as watch:
        x[x > 1], x.repeat_interleave(x), x[x.nonzero()], x.masked_select(x > 1), x.unique()
    assert watch.waits == ["index", "repeat_interleave", "nonzero", "masked_select", "_unique2"]
    with Watch() as watch:
        x[x], x.repeat_interleave(2), x.argsort(stable=True)
    assert watch.waits == []


def test_the_trunk_runs_without_any_value(model):
    """On the meta device there are only shapes: they are those of the real pass."""
    accelerator = come()
    real = model.run_trunk(images(1), accelerator)
    with torch.device("meta"):
        shapes, predictor = VGGT(model.sizes).eval(), ConfidencePredictor(48, 8)
    trunk = shapes.run_trunk(images(1, "meta"), CoMe(predictor, 0, group=(2, 2)))
    assert {i: t.shape for i, t in trunk.levels.items()} == {i: t.shape for i, t in real.levels.items()}
    for name in ("merged", "source", "rev", "weight", "confidence"):
        assert getattr(trunk.plan, name).shape == getattr(real.plan, name).shape
    assert trunk.plan.tail == real.plan.tail == 2  # half of the whole groups
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        shapes.run_trunk(images(1, "meta"), CoMe(predictor, 0, group=(2, 2), budget="window"))


@pytest.mark.slow
def test_a_compiled_trunk_is_one_graph_and_stays_compiled(model, monkeypatch):
    """backend "eager": what is tested is the capture and its guards, not the code that is generated."""
    accelerator = come()

    def levels(x):
        return model.run_trunk(x, accelerator).levels

    torch.compiler.reset()
    compiled = torch.compile(levels, backend="eager", fullgraph=True, dynamic=False)
    with torch.inference_mode():
        first, second = (compiled(images(1)),), images(2)
        monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
        for x, got in ((images(1), first[0]), (second, compiled(second))):
            for i, want in levels(x).items():
                assert torch.equal(want, got[i])
        with pytest.raises(torch._dynamo.exc.RecompileError):  # another window shape: the test can fail
            compiled(second[:, :2])
