"""Our MapAnything, V1 and V1.1, against the recorded reference (random weights): final results, every level, single functions."""

import pytest
import torch
from models import ROUNDING

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.cameras import fit_intrinsics, rays_of, rotation_from_quaternion
from come_ros.backbones.layers import offset_table
from come_ros.backbones.mapanything import MapAnything, MapAnythingSizes, quaternion_from_rotation, relative_poses
from come_ros.backbones.model import KnownTensors

CASES = [
    *(("v1_1", n) for n in ("square_stored_grid", "rect_interpolated", "tall_batch", "single_view")),
    *(("v1_1", n) for n in ("calibrated", "all_inputs", "mixed_inputs")),
    *(("v1", n) for n in ("rect_interpolated", "tall_batch", "all_inputs")),
]


@pytest.fixture(scope="module")
def fixture(shared_data):
    return torch.load(shared_data / "parity" / "mapanything_seed0.pt", weights_only=True)


def make(fixture, version):
    c, common = fixture["config"][version], fixture["config"]["common"]
    encoder, sharing = c["encoder"], c["info_sharing"]
    model = MapAnything(
        MapAnythingSizes(
            image_side=common["img_size"],
            patch=common["patch_size"],
            dim=encoder["embed_dim"],
            encoder_depth=encoder["blocks_kept"],
            encoder_heads=encoder["num_heads"],
            encoder_norm=encoder["final_norm"],
            gated=encoder["mlp"] == "swiglu",
            view_token=c["use_encoder_cls"],
            trunk_dim=sharing["dim"],
            depth=sharing["depth"],
            heads=sharing["num_heads"],
            layer_scale=sharing["layer_scale"],
            taps=tuple(sharing["taps"]),
            features=common["dpt"]["feature_dim"],
            channels=tuple(common["dpt"]["layer_dims"]),
            pose_dim=common["pose_head"]["hidden_dim"],
            scale_dim=common["scale_head"]["hidden_dim"],
            map_dims=tuple(common["geometry"]["dense_dims"]),
            vector_dims=tuple(common["geometry"]["global_dims"]),
        )
    )
    # the published key pattern, nothing missing, nothing more
    model.load_state_dict(fixture["state_dict"][version], strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(fixture):
    return {version: make(fixture, version) for version in ("v1_1", "v1")}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def known_of(geometry, images):
    """The fixture's list over views as one KnownTensors; None if no view gives anything."""
    if not any(geometry):
        return None
    b, _, _, height, width = images.shape

    def gather(name, *shape):
        views = [view.get(name, torch.full((b, *shape), torch.nan)) for view in geometry]
        return torch.stack(views, dim=1)

    metric = [torch.as_tensor(view.get("is_metric_scale", True)).expand(b) for view in geometry]
    return KnownTensors(
        gather("intrinsics", 3, 3), gather("depth_z", height, width), gather("camera_poses", 4, 4), torch.stack(metric, 1)
    )  # fmt: skip


@pytest.mark.parametrize(("version", "case"), CASES)
def test_every_output_and_level_equals_the_reference(fixture, models, version, case):
    model, c = models[version], fixture["cases"][version][case]
    images, want, inner = c["images"], c["outputs"], c["intermediate"]
    out, trunk = model(images, NoAccelerator(), ("camera", "depth", "points"), known=known_of(c["geometry"], images))

    def maps(tokens):  # (B, S, T, C) -> (B, S, C, h, w)
        return tokens[:, :, trunk.special :].transpose(2, 3).unflatten(3, trunk.grid)

    norm = model.info_sharing.norm
    encoded, *levels = (trunk.levels[tap] for tap in model.taps)
    assert error(maps(encoded), inner["fused_patches"]) <= 2e-5
    for tokens, ref in zip(levels, [*inner["info_sharing_taps"], inner["info_sharing_last"]], strict=True):
        assert error(maps(norm(tokens)), ref) <= 2e-5
    assert error(norm(trunk.shared), inner["scale_token"]) <= 2e-5

    assert error(out["metric_scale"], want["metric_scaling_factor"][:, 0]) <= 2e-5
    assert error(out["rays"], want["ray_directions"]) <= 2e-5
    assert error(out["depth_along_ray"], want["depth_along_ray"][..., 0]) <= 2e-5
    assert error(out["depth"], want["pts3d_cam"][..., 2]) <= 2e-5
    assert error(out["depth_conf"], want["conf"]) <= 2e-5
    assert error(out["points"], want["pts3d"]) <= 2e-5
    assert error(out["mask_logits"], want["non_ambiguous_mask_logits"]) <= 2e-5
    clear = want["non_ambiguous_mask_logits"].abs() > 1e-4
    assert torch.equal((out["mask_logits"] > 0)[clear], want["non_ambiguous_mask"].bool()[clear])
    assert (out["quat_xyzw"] - want["cam_quats"]).abs().max() <= 1e-5
    assert (out["world_from_camera"] - want["camera_poses"]).abs().max() <= 1e-5
    assert error(out["intrinsics"], want["intrinsics"]) <= 1e-4


def test_single_functions_equal_the_reference(fixture, models):
    p, model = fixture["probes"], models["v1_1"]
    stored = model.encoder["model"].pos_embed
    for (height, width), want in p["vit_pos_embed"].items():
        assert error(offset_table(stored, height // 14, width // 14), want) <= ROUNDING, (height, width)
    for name in ("ray_dirs_encoder", "depth_encoder"):
        got = getattr(model, name)(p[name]["input"][None])[0]
        assert error(got.transpose(1, 2).unflatten(2, (3, 4)), p[name]["output"]) <= ROUNDING, name
    for name in ("depth_scale_encoder", "cam_rot_encoder", "cam_trans_encoder", "cam_trans_scale_encoder"):
        assert error(getattr(model, name)(p[name]["input"]), p[name]["output"]) <= ROUNDING, name
    q = p["quaternion"]
    assert error(rotation_from_quaternion(q["xyzw"]), q["matrix"]) <= ROUNDING
    assert error(quaternion_from_rotation(q["matrix"]), q["xyzw_from_matrix"]) <= ROUNDING
    k = p["intrinsics"]
    for size, want in k["sizes_hw"].items():
        rays = rays_of(k["matrix"], size)
        assert error(rays / rays.norm(dim=-1, keepdim=True), want["rays"]) <= ROUNDING
        assert error(fit_intrinsics(want["rays"]), k["matrix"]) <= 1e-5  # what was recorded is itself off by 1.3e-5
        assert error(fit_intrinsics(want["bent_rays"]), want["intrinsics_of_bent_rays"]) <= 1e-5
    pyramid = model.dense_head[0].scratch
    f, r = p["fusion_block"], p["residual_conv_unit"]
    assert error(pyramid.refinenet2(f["x"], f["skip"], (12, 14)), f["output"]) <= ROUNDING
    assert error(pyramid.refinenet2.resConfUnit1(r["input"]), r["output"]) <= ROUNDING


def test_relative_poses_equal_the_reference(fixture):
    p = fixture["probes"]["relative_pose"]

    def pose(quat, translation):
        out = torch.eye(4).repeat(len(quat), 1, 1)
        out[:, :3, :3], out[:, :3, 3] = rotation_from_quaternion(quat), translation
        return out

    quat, translation = relative_poses(torch.stack((pose(*p["reference"]), pose(*p["other"])), dim=1))
    want, want_translation = p["other_in_reference"]
    sign = (quat[:, 1] * want).sum(-1, keepdim=True).sign()
    assert error(quat[:, 1] * sign, want) <= ROUNDING
    assert error(translation[:, 1], want_translation) <= ROUNDING
