"""The convolutional stem: published weights folded, features for the heads, every accelerator over it, and the encoder cache."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerators.test_contract import VARIANTS, EverySiteIdentity
from models import tiny

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.checkpoint import bundled_weights, load_vggt, save_checkpoint
from come_ros.backbones.stem import FINE_CHANNELS, LITE0, EfficientNetStem, folded
from come_ros.backbones.stream import EncoderCache, Step
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.backbones.vggt import VARIANTS as SIZES
from come_ros.backbones.vggt import VGGT

STEM = {"stem": True, "patch": 16, "image_side": 80, "native_side": 80}
CONV, NORM = ("_expand_conv", "_depthwise_conv", "_project_conv"), ("_bn0", "_bn1", "_bn2")


@pytest.fixture(scope="module")
def model():
    return tiny("vggt", **STEM)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 3, 64, 80, generator=torch.Generator().manual_seed(1))


def run(model, images, accelerator):
    with torch.inference_mode():
        return model(images, accelerator, ("camera", "depth", "points"))


def published() -> dict[str, torch.Tensor]:
    """Random weights under the published names."""
    g = torch.Generator().manual_seed(0)
    state = {}

    def add(conv, norm, outputs, inputs, kernel):
        state[f"{conv}.weight"] = (
            torch.randn(outputs, inputs, kernel, kernel, generator=g) / (inputs * kernel**2) ** 0.5
        )
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = 0.5 + torch.rand(outputs, generator=g)
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = torch.randn(outputs, generator=g)

    add("_conv_stem", "_bn0", 32, 3, 3)
    channels = 32
    for i, (kernel, _, expansion, outputs) in enumerate(LITE0):
        wide, block = channels * expansion, f"_blocks.{i}."
        if expansion > 1:
            add(block + CONV[0], block + NORM[0], wide, channels, 1)
        add(block + CONV[1], block + NORM[1], wide, 1, kernel)
        add(block + CONV[2], block + NORM[2], outputs, wide, 1)
        channels = outputs
    return state


def layer(state, x, conv, norm, stride=1, groups=1):
    """Convolution with TensorFlow's "same" padding and batch norm, as the papers have them."""
    weight = state[f"{conv}.weight"]
    pads = []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0)
        pads += [total // 2, total - total // 2]
    x = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)
    parts = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts, eps=1e-3)


def test_folded_weights_compute_what_the_published_layers_do():
    state, stem = published(), EfficientNetStem()
    stem.load_state_dict(folded(state))
    images = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(2))
    x, seen = F.relu6(layer(state, (images * 255 - 127) / 128, "_conv_stem", "_bn0", 2)), []
    for i, (_, stride, expansion, outputs) in enumerate(LITE0):
        y, b = x, f"_blocks.{i}."
        if expansion > 1:
            y = F.relu6(layer(state, y, b + CONV[0], b + NORM[0]))
        y = F.relu6(layer(state, y, b + CONV[1], b + NORM[1], stride, y.shape[1]))
        y = layer(state, y, b + CONV[2], b + NORM[2])
        x = x + y if stride == 1 and x.shape[1] == outputs else y
        seen.append(x)
    with torch.inference_mode():
        coarse, fine = stem(images)
    assert coarse.shape == (2, 112, 4, 5) and [f.shape[1] for f in fine] == list(FINE_CHANNELS)
    for ours, theirs in ((coarse, seen[10]), (fine[0], seen[2]), (fine[1], seen[4])):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    del state["_blocks.5._bn1.bias"]
    with pytest.raises(KeyError, match=r"_blocks\.5\._bn1\.bias"):
        folded(state)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_accelerator_keeps_its_promises_over_a_stem(model, images, name):
    plain, _ = run(model, images, NoAccelerator())
    reduced, trunk = run(model, images, VARIANTS[name]())
    nothing, _ = run(model, images, VARIANTS[name](ratio=0))
    assert all(torch.equal(plain[key], nothing[key]) for key in plain)
    assert torch.equal(plain["depth"], reduced["depth"]) == (name == "none")
    assert reduced["depth"].shape == (2, 3, 64, 80) and all(v.isfinite().all() for v in reduced.values())
    assert all(t.shape == (2, 3, 5 + 4 * 5, 96) for t in trunk.levels.values())
    alone, _ = run(model, images[1:], VARIANTS[name]())
    torch.testing.assert_close(reduced["depth"][1:], alone["depth"], rtol=1e-4, atol=1e-5)


def test_visiting_every_site_changes_no_bit(model, images):
    plain, _ = run(model, images, NoAccelerator())
    visited, _ = run(model, images, EverySiteIdentity())
    assert all(torch.equal(value, visited[key]) for key, value in plain.items())


def test_heads_read_the_fine_features_and_the_camera_does_not(model, images):
    with torch.inference_mode():
        trunk = model.run_trunk(images, NoAccelerator())
        assert [t.shape for t in trunk.fine] == [(2, 3, 24, 16, 20), (2, 3, 40, 8, 10)]
        size, heads = (64, 80), ("camera", "depth", "points")
        plain = model.decode(trunk, size, heads, lambda: None)
        for i in range(2):
            fine = tuple(t.flip(-1) if j == i else t for j, t in enumerate(trunk.fine))
            other = model.decode(trunk._replace(fine=fine), size, heads, lambda: None)
            assert torch.equal(plain["world_from_camera"], other["world_from_camera"])
            assert not torch.equal(plain["depth"], other["depth"]) and not torch.equal(plain["points"], other["points"])


def test_the_stem_runs_once_for_each_frame(model):
    images = np.random.default_rng(1).integers(0, 256, (6, 64, 80, 3), np.uint8)
    backbone, cache, seen = TorchBackbone("vggt", model, NoAccelerator(), device="cpu"), EncoderCache(), []
    handle = model.aggregator.patch_embed.stem.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    for frames in ((0, 1, 2), (1, 2, 3), (3, 4, 5)):
        dense = (0, 2)
        ours = backbone.predict(images[list(frames)], step=Step(tuple((i, "camera") for i in frames), cache, dense))
        whole = backbone.predict(images[list(frames)])
        np.testing.assert_allclose(ours.depth, whole.depth[list(dense)], rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(ours.window_from_camera, whole.window_from_camera, rtol=2e-4, atol=1e-5)
    handle.remove()
    assert seen == [3, 3, 1, 3, 2, 3]  # by turns: new frames only, and all of them


def test_files_with_a_stem_come_back_and_those_without_have_none(model, images, tmp_path):
    path = str(tmp_path / "stem.safetensors")
    save_checkpoint(path, model, torch.float32)
    again = load_vggt(path).eval()
    assert again.sizes == model.sizes
    plain, loaded = (run(m, images, NoAccelerator())[0] for m in (model, again))
    assert all(torch.equal(plain[key], loaded[key]) for key in plain)
    old = load_vggt(bundled_weights())
    if not old.sizes.stem:
        assert not any("stem" in key or ".fine." in key for key in old.state_dict())


def test_a_stem_wants_patches_of_its_stride():
    with pytest.raises(ValueError, match="patch is 14, but a model with a stem has patches of 16 px"):
        VGGT(dataclasses.replace(SIZES["tiny2"], patch=14))
    with pytest.raises(ValueError, match="an image is 56x48 px, but both sides must be multiples of 16"):
        VGGT(SIZES["tiny2"])(torch.zeros(1, 1, 3, 48, 56), NoAccelerator(), ("depth",))
