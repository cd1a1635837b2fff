"""Our Depth Anything 3 against its Apache-2.0 reference (commit 2c21ea84), recorded in data/da3_seed0.npz: a small model of random
weights, with ref_view_strategy "first". Weights and images are made again from seeds; depth and confidence are every third pixel's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from come_ros.accelerators import NoAccelerator
from come_ros.backbones import da3
from come_ros.backbones.da3 import DA3Sizes, DepthAnything3

SIZES = DA3Sizes(
    image_side=70, native_side=70, dim=48, heads=3, depth=6, alternate=2, taps=(0, 0, 1, 1), features=16, channels=(8, 12, 16, 16)
)  # fmt: skip
CASES = {"one_stored_grid": (1, 1, 70, 70), "wide": (1, 2, 56, 98), "batch": (2, 4, 70, 42)}


def weights_of(shapes):
    """The same numbers for the same names, whatever the order in which they come."""
    rng = np.random.default_rng(0)
    made = {}
    for key, shape in sorted(shapes.items()):
        values = rng.standard_normal(shape).astype(np.float32)
        is_gain = len(shape) == 1 and not key.endswith("bias")
        made[key] = torch.from_numpy(1 + 0.1 * values if is_gain else 0.13 * values)
    return made


def images_of(case):
    seed = sorted(CASES).index(case)
    b, s, height, width = CASES[case]
    return torch.from_numpy(np.random.default_rng(100 + seed).random((b, s, 3, height, width), np.float32))


@pytest.fixture(scope="module")
def model():
    model = DepthAnything3(SIZES)
    model.load_state_dict(weights_of({k: tuple(v.shape) for k, v in model.state_dict().items()}))
    return model.eval().requires_grad_(False)


def error(got, want):
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_output_equals_the_reference(model, case):
    recorded = np.load(Path(__file__).parent / "data" / "da3_seed0.npz")
    want = {key.removeprefix(f"{case}_"): recorded[key] for key in recorded.files if key.startswith(case)}
    out, _ = model(images_of(case), NoAccelerator(), ("camera", "depth"))
    assert error(out["depth"][..., ::3, ::3].numpy(), want["depth"]) <= 2e-5
    assert error(out["depth_conf"][..., ::3, ::3].numpy(), want["conf"]) <= 2e-5
    assert error(out["pose_encoding"].numpy(), want["pose_encoding"]) <= 2e-5
    assert error(out["world_from_camera"][..., :3, :].numpy(), want["world_from_camera"]) <= 2e-5
    usable = want["pose_encoding"][..., 7:] > 0.02  # we hold the field of view within 1 .. 170 degrees
    for i, axis in ((1, 0), (0, 1)):  # vertical first
        focal = out["intrinsics"][..., i, i].numpy()[usable[..., axis]]
        np.testing.assert_allclose(focal, want["intrinsics"][..., i, i][usable[..., axis]], rtol=2e-5)


def test_the_test_bites(model):
    """Rotary positions that differ between patches in global blocks, and the first view as any other, are seen."""
    x = images_of("batch")
    out, _ = model(x, NoAccelerator(), ("depth",))
    other, _ = model(x.roll(1, 1), NoAccelerator(), ("depth",))
    assert error(other["depth"].roll(-1, 1).numpy(), out["depth"].numpy()) > 1e-3


@pytest.mark.parametrize(
    ("variant", "millions"), [("small", (22.06, 1.19)), ("base", (86.6, 4.73))]
)  # fmt: skip
def test_the_published_sizes(variant, millions):
    """Encoder and camera decoder of backbones.md 4.3; of its head we leave the ray branch out."""
    with torch.device("meta"):
        model = DepthAnything3(da3.VARIANTS[variant])
    state = model.state_dict()
    for prefix, count in zip(("backbone.", "cam_dec."), millions, strict=True):
        assert sum(v.numel() for k, v in state.items() if k.startswith(prefix)) / 1e6 == pytest.approx(count, abs=0.05)
    published = {f"model.{k}": v for k, v in state.items()}
    published |= {"model.cam_enc.trunk.0.norm1.weight": None, "model.head.scratch.refinenet1_aux.out_conv.bias": None}
    assert DepthAnything3.own_names(published).keys() == state.keys()
    assert DepthAnything3.published_sizes(DepthAnything3.own_names(published)) == da3.VARIANTS[variant]
    assert tuple(state["backbone.pretrained.camera_token"].shape) == (1, 2, model.sizes.dim)
    assert "backbone.pretrained.blocks.4.attn.q_norm.weight" in state
    assert "backbone.pretrained.blocks.3.attn.q_norm.weight" not in state
