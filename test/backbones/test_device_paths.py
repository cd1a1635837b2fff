"""How a device runs a model: weights made low once, parts of blocks compiled, heads in bf16, CUDA graphs. What needs no GPU of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from accelerators.test_contract import VARIANTS, seeded
from models import TINY, WIDTH, tiny

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.backbones.device import to_host
from come_ros.backbones.graphs import Graphs, NotRecordable, cloned, put_together, taken_apart
from come_ros.backbones.layers import BlockParts
from come_ros.backbones.torch_backbone import TorchBackbone, lower_weights
from come_ros.errors import ConfigError

X = torch.rand(1, 3, 3, 56, 70, generator=torch.Generator().manual_seed(1))


def levels(model, accelerator):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return model.run_trunk(X, accelerator).levels


@pytest.mark.parametrize("name", sorted(TINY))
def test_lowered_weights_are_what_autocast_makes_of_them(name):
    model, other = tiny(name), tiny(name)
    lower_weights(other, torch.bfloat16)
    accelerators = [NoAccelerator(), VARIANTS["come"](), VARIANTS["good_token_hunting"]()]
    for accelerator in accelerators if name == "vggt" else accelerators[:1]:
        plain, low = levels(model, accelerator), levels(other, accelerator)
        assert all(torch.equal(plain[tap], low[tap]) for tap in plain)
    changed = [n for n, p in other.named_parameters() if p.dtype != torch.float32]
    assert changed and not any(w in n for n in changed for w in ("head", "norm", "ls1", "conf_", "point_", "cam_dec"))


@pytest.mark.slow
def test_parts_of_blocks_compile_once_for_all_blocks_of_a_kind():
    compiled, counts = [], []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    plain, model = tiny("vggt"), tiny("vggt")
    model.parts = BlockParts.compiled(backend)
    accelerator = CoMe(seeded(lambda: ConfidencePredictor(WIDTH, 8)), 0, group=(2, 2))
    with torch.inference_mode():
        for x in (X, X[:, :2], X.repeat(1, 2, 1, 1, 1)):
            want = plain(x, accelerator, ("camera", "depth"))[0]
            got = model(x, accelerator, ("camera", "depth"))[0]
            assert all(torch.allclose(got[key], want[key], rtol=1e-4, atol=1e-5) for key in want)
            counts.append(len(compiled))
    # encoder and trunk, within a frame and across, for one length and then for all: not one for each of the ten blocks
    assert counts[0] >= 4 and counts[2] == counts[1] < 2 * 10
    torch._dynamo.reset()


@pytest.mark.parametrize("name", sorted(TINY))
def test_heads_in_half_precision_stay_near(name):
    images = (255 * X[0].permute(0, 2, 3, 1)).byte().numpy()
    exact = TorchBackbone(name, tiny(name), NoAccelerator(), device="cpu").predict(images)
    near = TorchBackbone(name, tiny(name), NoAccelerator(), device="cpu", heads_precision="bf16").predict(images)
    assert near.depth.dtype == np.float32 and not np.array_equal(near.depth, exact.depth)
    assert np.median(np.abs(near.depth / exact.depth - 1)) < 0.02
    np.testing.assert_array_equal(near.window_from_camera, exact.window_from_camera)


def test_graphs_on_the_cpu_are_refused():
    with pytest.raises(ConfigError, match=r"optimize is graph.*CUDA device.*set optimize"):
        TorchBackbone("vggt", tiny("vggt"), NoAccelerator(), device="cpu", optimize="graph")


def test_arrays_on_the_host_are_as_they_were():
    given = {"a": torch.rand(2, 3), "b": torch.rand(3).bfloat16(), "c": torch.tensor([True, False])}
    for name, array in to_host(given).items():
        np.testing.assert_array_equal(array, given[name].float().numpy())


# What a recording is given and gives


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_what_goes_between_encoder_and_trunk_comes_apart_and_together(name):
    model, accelerator = tiny("vggt"), VARIANTS[name]()
    with torch.inference_mode():
        encoded = model.encode(X, accelerator)
        form, tensors = taken_apart(encoded)
        again = put_together(form, iter(tensors))
        assert hash(form) == hash(taken_apart(again)[0]) and form == taken_apart(again)[0]
        trunk, same = model.attend(encoded, accelerator), model.attend(cloned(again), accelerator)
        assert all(torch.equal(trunk.levels[tap], same.levels[tap]) for tap in trunk.levels)
        taken_apart(trunk)  # all of it can be what a recording gives
        other = taken_apart(model.encode(X[:, :2], accelerator))[0]
    assert form != other


def test_forms_tell_shapes_types_and_constants_apart_and_refuse_the_rest():
    @dataclasses.dataclass(frozen=True)
    class Plan:
        size: int
        rows: torch.Tensor
        made: dict

    value = (Plan(3, torch.ones(2), {"k": [torch.zeros(1), None]}), "text", 0.5)
    form, tensors = taken_apart(value)
    assert [t.shape for t in tensors] == [(2,), (1,)]
    copy = cloned(value)
    assert copy[0].rows is not value[0].rows and torch.equal(copy[0].rows, value[0].rows)
    assert copy[0].made is not value[0].made and copy[1:] == value[1:]
    for other in (
        (dataclasses.replace(value[0], size=4), "text", 0.5),
        (dataclasses.replace(value[0], rows=torch.ones(3)), "text", 0.5),
        (dataclasses.replace(value[0], rows=torch.ones(2, dtype=torch.long)), "text", 0.5),
        (value[0], "other", 0.5),
    ):
        assert taken_apart(other)[0] != form
    with pytest.raises(NotRecordable, match="object"):
        taken_apart((object(),))


def test_what_cannot_be_recorded_runs_step_by_step_and_is_said(caplog, monkeypatch):
    graphs, calls = Graphs(torch.device("cpu")), []

    def stage(x, more=None):
        calls.append(more)
        return 2 * x

    assert torch.equal(graphs(("odd", None), stage, torch.ones(2), object()), 2 * torch.ones(2))
    assert "odd cannot be a CUDA graph (object is neither" in caplog.text
    monkeypatch.setattr(graphs, "_record", lambda *_: (_ for _ in ()).throw(RuntimeError("operation not permitted")))
    caplog.clear()
    for _ in range(4):
        assert torch.equal(graphs(("plain", None), stage, torch.ones(2)), 2 * torch.ones(2))
    assert caplog.text.count("operation not permitted") == 1 and len(calls) == 5


@pytest.mark.gpu
@pytest.mark.parametrize("optimize", ["graph", "compile"])
@pytest.mark.parametrize("name", ["none", "come", "good_token_hunting", "pace", "temporal"])
def test_a_recorded_model_gives_what_it_gives_step_by_step(name, optimize):
    if not torch.cuda.is_available():
        pytest.skip("no usable CUDA device")
    from come_ros.backbones.stream import EncoderCache, Step

    def made(**more):
        accelerator = VARIANTS[name]().to(torch.device("cuda"))
        return TorchBackbone("vggt", tiny("vggt"), accelerator, device="cuda", precision="fp32", **more)

    plain, ours = made(), made(optimize=optimize)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 56, 70, 3), np.uint8)
    cache, reference = EncoderCache(), EncoderCache()
    for i in range(5):  # the third and later ones are replayed
        names = tuple((n, "camera") for n in range(i, i + 3))
        got = ours.predict(pixels[i : i + 3], step=Step(names, cache))
        want = plain.predict(pixels[i : i + 3], step=Step(names, reference))
        np.testing.assert_allclose(got.depth, want.depth, rtol=1e-3)
        np.testing.assert_allclose(got.window_from_camera, want.window_from_camera, rtol=1e-3, atol=1e-4)
    assert ours._graphs is not None and sum(r is not None for r in ours._graphs._seen.values()) >= 2
