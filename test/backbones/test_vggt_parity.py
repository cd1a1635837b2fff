"""Our VGGT against the recorded reference (random weights): final results, every level, single functions."""

import pytest
import torch
from models import ROUNDING, recorded_sizes

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.heads import Fusion, ResidualConv, grid_embedding
from come_ros.backbones.layers import antialiased_table, rotary
from come_ros.backbones.vggt import VGGT, VGGTSizes, decode_pose, inverse_log

CASES = ["square_stored_grid", "rect_interpolated", "tall_interpolated", "single_frame", "long_sequence"]


@pytest.fixture(scope="module")
def fixture(shared_data):
    return torch.load(shared_data / "parity" / "vggt_seed0.pt", weights_only=True)


@pytest.fixture(scope="module")
def model(fixture):
    c = fixture["config"]["model"]
    model = VGGT(recorded_sizes(VGGTSizes, c, c["dpt"]["intermediate_layer_idx"]))
    model.load_state_dict(
        fixture["state_dict"], strict=True
    )  # the published key pattern, nothing missing, nothing more
    return model.eval()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).detach().abs().max() / want.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_every_output_and_level_equals_the_reference(fixture, model, case):
    images, want = fixture["cases"][case]["images"], fixture["cases"][case]["outputs"]
    with torch.inference_mode():
        out, trunk = model(images, NoAccelerator(), ("camera", "depth", "points"))
    assert trunk.special == want["patch_start_idx"]
    for level, tokens in want["aggregated_tokens"].items():
        assert error(trunk.levels[level], tokens) <= 2e-5, f"level {level}"
    for got, ref in zip(out["pose_encodings"], want["pose_enc_iterations"], strict=True):
        assert (got - ref).abs().max() <= 1e-5
    camera_from_world, _ = decode_pose(out["pose_encodings"][-1], images.shape[-2:])
    assert error(camera_from_world[..., :3, :], want["extrinsics"]) <= 2e-5
    assert error(out["intrinsics"], want["intrinsics"]) <= 2e-5
    assert error(out["depth"], want["depth"][..., 0]) <= 2e-5
    assert error(out["depth_conf"], want["depth_conf"]) <= 2e-5
    assert error(out["points"], want["world_points"]) <= 2e-5
    assert error(out["points_conf"], want["world_points_conf"]) <= 2e-5
    identity = torch.eye(4).expand_as(camera_from_world)
    assert (camera_from_world @ out["world_from_camera"] - identity).abs().max() < 1e-5


def test_head_chunks_do_not_change_the_result(fixture, model):
    images = fixture["cases"]["long_sequence"]["images"]
    with torch.inference_mode():
        trunk = model.run_trunk(images, NoAccelerator())
        one, all_ = (
            model.run_dense_head(model.depth_head, trunk, images.shape[-2:], lambda: None, chunk=n) for n in (1, 10)
        )
    assert error(one, all_) <= ROUNDING


def test_single_functions_equal_the_reference(fixture, model):
    p = fixture["probes"]
    table = rotary(p["rope"]["positions_yx"], 64)
    assert error(table.apply(p["rope"]["tokens"]), p["rope"]["output"]) <= ROUNDING
    stored = model.aggregator.patch_embed.pos_embed
    for (h, w), want in p["vit_pos_embed"].items():
        assert error(antialiased_table(stored, h // 14, w // 14), want) <= ROUNDING, (h, w)
    for (w, h, aspect), want in p["uv_embed_32ch"].items():
        assert error(grid_embedding(h, w, 32, aspect, torch.device("cpu")).permute(1, 2, 0) / 0.1, want) <= ROUNDING
    raw = p["activate_head"]["input_bchw"]
    assert error(inverse_log(raw[:, :3]).movedim(1, -1), p["activate_head"]["outputs"]["inv_log"][0]) <= ROUNDING
    pose, k = decode_pose(p["pose_encoding"]["input"], tuple(p["pose_encoding"]["image_size_hw"]))
    assert error(pose[..., :3, :], p["pose_encoding"]["extrinsics"]) <= ROUNDING
    assert error(k, p["pose_encoding"]["intrinsics"]) <= ROUNDING
    fusion: Fusion = model.depth_head.scratch.refinenet2
    unit: ResidualConv = fusion.resConfUnit1
    with torch.inference_mode():
        probe = p["fusion_block"]
        assert error(fusion(probe["x"], probe["skip"], tuple(probe["size"])), probe["output"]) <= ROUNDING
        assert error(unit(p["residual_conv_unit"]["input"]), p["residual_conv_unit"]["output"]) <= ROUNDING
