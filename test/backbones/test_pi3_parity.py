"""Our Pi3 against the recorded reference (random weights): final results, decoder features, single functions."""

import pytest
import torch
from models import ROUNDING

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.layers import antialiased_table, rotary
from come_ros.backbones.pi3 import Pi3, Pi3Sizes, nearest_rotation

CASES = ["square_stored_grid", "rect_interpolated", "tall_batch", "single_frame", "long_sequence"]


@pytest.fixture(scope="module")
def fixture(shared_data):
    return torch.load(shared_data / "parity" / "pi3_seed0.pt", weights_only=True)


@pytest.fixture(scope="module")
def model(fixture):
    c = fixture["config"]["model"]
    encoder, decoder, heads = c["encoder"], c["decoder"], c["heads"]
    model = Pi3(
        Pi3Sizes(
            image_side=c["img_size"],
            patch=c["patch_size"],
            dim=encoder["embed_dim"],
            encoder_depth=encoder["depth"],
            encoder_heads=encoder["num_heads"],
            encoder_registers=encoder["num_register_tokens"],
            depth=decoder["depth"],
            heads=decoder["num_heads"],
            registers=decoder["num_register_tokens"],
            head_dim=heads["dim"],
            head_depth=heads["depth"],
            head_heads=heads["num_heads"],
            map_out=heads["point_out"],
            camera_out=heads["camera_out"],
        )
    )
    # the published key pattern, nothing missing, nothing more
    model.load_state_dict(fixture["state_dict"], strict=True)
    return model.eval().requires_grad_(False)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_every_output_and_level_equals_the_reference(fixture, model, case):
    c = fixture["cases"][case]
    want, inner = c["outputs"], c["intermediate"]
    out, trunk = model(c["images"], NoAccelerator(), ("camera", "depth", "points"))
    assert error(trunk.levels[model.taps[0]], inner["decoder_features"]) <= 2e-5
    assert error(out["points_in_camera"], want["local_points"]) <= 2e-5
    assert error(out["depth"], want["local_points"][..., 2]) <= 2e-5
    assert error(out["points"], want["points"]) <= 2e-5
    assert error(out["conf_logits"], want["conf"][..., 0]) <= 2e-5
    assert (out["world_from_camera"] - want["camera_poses"]).abs().max() <= 1e-5


def test_no_frame_is_special(fixture, model):
    """Other orders of the frames give the same, in that order: there is no reference frame."""
    images = fixture["cases"]["long_sequence"]["images"]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    out, _ = model(images, NoAccelerator(), ("camera", "depth"))
    swapped, _ = model(images[:, order], NoAccelerator(), ("camera", "depth"))
    for key in ("depth", "depth_conf", "world_from_camera", "intrinsics"):
        assert error(swapped[key], out[key][:, order]) <= 2e-5, key


def test_single_functions_equal_the_reference(fixture, model):
    p = fixture["probes"]
    rope = p["rope"]
    assert error(rotary(rope["positions_yx"], 64).apply(rope["tokens"]), rope["output"]) <= ROUNDING
    for (height, width), want in p["vit_pos_embed"].items():
        got = antialiased_table(model.encoder.pos_embed, height // 14, width // 14)
        assert error(got, want) <= ROUNDING, (height, width)
    rotation = p["rotation"]
    assert error(nearest_rotation(rotation["input"].view(-1, 3, 3)), rotation["output"]) <= 1e-5
    head = p["point_head"]
    height, width = head["image_size_hw"]
    raw = model.point_head(head["tokens"], (height // 14, width // 14)).movedim(1, -1)
    assert error(raw, head["output"]) <= ROUNDING
