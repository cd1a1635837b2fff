"""Our LingBot against the recorded reference (random weights): streams, what they see and keep, the first stage, single functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import ROUNDING, recorded_sizes

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.cameras import decode_pose, invert_rigid, quaternion_from_rotation
from come_ros.backbones.causal import CausalPass, StreamState
from come_ros.backbones.layers import rotary, video_rotary
from come_ros.backbones.lingbot import LingBot, LingBotSizes
from come_ros.config_groups import StreamParameters

STREAMS = ["stream", "evicted", "keyframes", "one_scale_frame", "own_window"]


@pytest.fixture(scope="module")
def fixture(shared_data):
    return torch.load(shared_data / "parity" / "lingbot_seed0.pt", weights_only=True)


def filled(fixture, weights, **more):
    c = fixture["config"]["model"]
    model = LingBot(recorded_sizes(LingBotSizes, c, c["aggregator"]["taps"], **more))
    model.load_state_dict(fixture[weights], strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def model(fixture):
    return filled(fixture, "state_dict", rope_split=tuple(fixture["config"]["model"]["rope3d"]["split_tyx"]))


def error(got, want):
    assert got.shape == want.shape
    return float((got - want).detach().abs().max() / want.abs().max())


def run(model, images, scale_frames, window=64, interval=1):
    """Outputs and levels of all frames (1, S, ...), the passes, and the last state: the first frames together, then one by one."""
    state, passes, outs, levels = StreamState(), [], [], []
    parameters = StreamParameters(window=window, keyframe_interval=interval)
    with torch.inference_mode():
        for rows in [list(range(scale_frames)), *([i] for i in range(scale_frames, images.shape[1]))]:
            passes.append(CausalPass(state, len(rows), parameters))
            encoded = model.encode(images[:, rows], NoAccelerator())
            encoded = encoded._replace(tokens=encoded.tokens._replace(stream=passes[-1]))
            trunk = model.attend(encoded, NoAccelerator())
            outs.append(model.decode(trunk, images.shape[-2:], ("camera", "depth"), lambda: None))
            levels.append(trunk.levels)
            state = passes[-1].after()
    out = {k: torch.cat([o[k] for o in outs], dim=2 if k == "pose_encodings" else 1) for k in outs[0]}
    return out, {i: torch.cat([one[i] for one in levels], dim=1) for i in levels[0]}, passes, state


@pytest.mark.parametrize("case", STREAMS)
def test_every_output_and_level_of_a_stream_equals_the_reference(fixture, model, case):
    c = fixture["cases"][case]
    out, levels, passes, _ = run(model, c["images"], c["scale_frames"], c["window"], c["keyframe_interval"])
    want = c["outputs"]
    for level, tokens in want["aggregated_tokens"].items():
        assert error(levels[level], tokens) <= 2e-5, f"level {level}"
    for got, ref in zip(out["pose_encodings"], want["pose_enc_iterations"], strict=True):
        assert (got - ref).abs().max() <= 1e-5
    assert error(out["world_from_camera"], want["world_from_camera"]) <= 2e-5
    assert error(invert_rigid(out["world_from_camera"]), want["camera_from_world"]) <= 2e-5
    assert error(out["intrinsics"], want["intrinsics"]) <= 2e-5
    assert error(out["depth"], want["depth"][..., 0]) <= 2e-5
    assert error(out["depth_conf"], want["depth_conf"]) <= 2e-5
    # what global attention saw: temporal indices, as frames of the recording
    n, frame_of = c["scale_frames"], [w["frame"] for w in c["context"] if w["keyframe"]]
    for passed, seen in zip([passes[0]] * n + passes[1:], c["context"], strict=True):
        assert passed.keyframe == seen["keyframe"] and passed.first <= seen["temporal_index"]
        own = set(range(n)) if passed.starts else {seen["frame"]}
        whole = {frame_of[i] for kept in passed.past if len(kept) > kept.special for i in kept.frames}
        assert whole | own == set(seen["patches_of"])
        assert {frame_of[i] for kept in passed.past for i in kept.frames} | own == set(seen["specials_of"])


def test_keys_and_values_that_are_kept_equal_the_reference(fixture, model):
    c = fixture["cases"]["evicted"]
    state = run(model, c["images"], c["scale_frames"], c["window"])[3]
    assert state.count == c["cache"]["temporal_index"]
    for block, want in c["cache"]["global_blocks"].items():
        n = want["k"].shape[3]
        for part, name in (("keys", "k"), ("values", "v")):
            got = torch.cat([getattr(kept, part)[block] for kept in (state.scale, *state.local)], dim=2)
            assert error(got.unflatten(2, (-1, n)), want[name]) <= 2e-5
            got = getattr(state.trajectory, part)[block]
            assert error(got.unflatten(2, (-1, 6)), want[f"{name}_special"]) <= 2e-5
    for i, blocks in enumerate(c["cache"]["camera_head"]):
        for j, want in blocks.items():
            for got, name in zip(state.camera[i, j], "kv", strict=True):
                assert error(got, want[name].flatten(2, 3)) <= 2e-5


def test_one_iteration_of_the_camera_head_gives_the_first_of_all(fixture, model):
    c = fixture["cases"]["evicted"]
    whole = run(model, c["images"], c["scale_frames"], c["window"])[0]["pose_encodings"]
    iterations = model.camera_head.iterations
    try:
        model.camera_head.iterations = 1
        one = run(model, c["images"], c["scale_frames"], c["window"])[0]["pose_encodings"]
    finally:
        model.camera_head.iterations = iterations
    assert torch.equal(one[0], whole[0])


def test_the_first_stage_is_a_vggt_with_poses_the_other_way_round(fixture):
    model = filled(fixture, "state_dict_stage1", causal=False, scale_token=False, points=True, rope_split=())
    images, want = fixture["cases"]["stage1"]["images"], fixture["cases"]["stage1"]["outputs"]
    with torch.inference_mode():
        out, trunk = model(images, NoAccelerator(), ("camera", "depth", "points"))
    assert trunk.special == want["patch_start_idx"]
    for level, tokens in want["aggregated_tokens"].items():
        assert error(trunk.levels[level], tokens) <= 2e-5
    for got, ref in zip(out["pose_encodings"], want["pose_enc_iterations"], strict=True):
        assert (got - ref).abs().max() <= 1e-5
    for name in ("world_from_camera", "intrinsics", "depth_conf"):
        assert error(out[name], want[name]) <= 2e-5, name
    assert error(out["depth"], want["depth"][..., 0]) <= 2e-5
    assert error(out["points"], want["world_points"]) <= 2e-5
    assert error(out["points_conf"], want["world_points_conf"]) <= 2e-5


# Windows that are laid onto one another, as the reference does it (ours is alignment.py, which also takes outliers)


def laid(before, after, overlap):
    """(scale, rotation, translation) of `after` onto `before`, dicts of pose_enc (N, 9), depth (N, H, W) and is_keyframe (N,) or None;
    and after itself, laid."""
    a, b = ({k: v[-overlap:] for k, v in before.items()}, {k: v[:overlap] for k, v in after.items()})
    if "is_keyframe" in a:
        pairs = (a["is_keyframe"] & b["is_keyframe"]).nonzero()[:, 0]
        anchor = pairs[-1]
    else:
        pairs, anchor = torch.zeros(1, dtype=torch.long), 0
    depth_a, depth_b = a["depth"][pairs].double(), b["depth"][pairs].double()
    ratio = (depth_a / depth_b)[torch.isfinite(depth_a) & torch.isfinite(depth_b) & (depth_b > 1e-6)]
    scale = ratio.median().clamp(1e-3, 1e3).float()
    (pose_a, _), (pose_b, _) = (decode_pose(one["pose_enc"][anchor], (2, 2)) for one in (a, b))
    rotation = pose_a[:3, :3] @ pose_b[:3, :3].T
    translation = pose_a[:3, 3] - scale * rotation @ pose_b[:3, 3]
    poses, _ = decode_pose(after["pose_enc"], (2, 2))
    centre = scale * poses[:, :3, 3] @ rotation.T + translation
    quat = quaternion_from_rotation(rotation @ poses[:, :3, :3])
    pose_enc = torch.cat((centre, quat, after["pose_enc"][:, 7:]), dim=1)
    return scale, rotation, translation, {**after, "pose_enc": pose_enc, "depth": scale * after["depth"]}


def of_one_scene(probe):
    depth = probe["depth"][0, ..., 0]
    return {**{k: v[0] for k, v in probe.items()}, "depth": depth}


@pytest.mark.parametrize("index", [0, 1])
def test_windows_are_laid_onto_one_another_as_the_reference_does(fixture, index):
    p = fixture["probes"]["window_alignment"][index]
    scale, rotation, translation, after = laid(of_one_scene(p["before"]), of_one_scene(p["after"]), p["overlap"])
    assert error(scale, p["scale"][0]) <= 1e-5 and error(rotation, p["rotation"][0]) <= 1e-5
    assert error(translation, p["translation"][0]) <= 1e-5
    assert error(after["pose_enc"], p["laid_pose_enc"][0]) <= 1e-5
    assert error(after["depth"], p["laid_depth"][0, ..., 0]) <= 1e-5


def test_a_stream_that_begins_again_is_laid_onto_the_one_before(fixture, model):
    how, c = fixture["config"]["windowed"], fixture["cases"]["windowed"]
    size, overlap, scale_frames = how["window_size"], how["overlap_size"], how["scale_frames"]
    starts = list(range(0, how["frames"] - overlap, size - overlap))
    before, scales, moves, kept = None, [], [], []
    for start in starts:
        images = c["images"][:, start : start + size]
        out = run(model, images, min(scale_frames, images.shape[1]))[0]
        window = {"pose_enc": out["pose_encodings"][-1][0], "depth": out["depth"][0], "conf": out["depth_conf"][0]}
        window["is_keyframe"] = torch.ones(images.shape[1], dtype=torch.bool)
        scale, rotation, translation = torch.tensor(1.0), torch.eye(3), torch.zeros(3)
        if before is not None:
            scale, rotation, translation, window = laid(before, window, overlap)
        scales.append(scale)
        moves.append(torch.cat((rotation, translation[:, None]), dim=1))
        kept.append({k: v if start == starts[-1] else v[:-overlap] for k, v in window.items()})
        before = window
    want = c["outputs"]
    assert error(torch.stack(scales), want["chunk_scales"][0]) <= 2e-5
    assert error(torch.stack(moves), want["chunk_transforms"][0, :, :3]) <= 2e-5
    poses, ref = (decode_pose(e, (2, 2))[0] for e in (torch.cat([k["pose_enc"] for k in kept]), want["pose_enc"][0]))
    assert error(poses, ref) <= 2e-5
    assert error(torch.cat([k["depth"] for k in kept]), want["depth"][0, ..., 0]) <= 2e-5
    assert error(torch.cat([k["conf"] for k in kept]), want["depth_conf"][0]) <= 2e-5
    types = [np.where(np.arange(len(k["conf"])) < scale_frames, 0, 1) for k in kept]
    assert np.array_equal(np.concatenate(types), want["frame_type"][0].numpy())


# Single functions


@pytest.mark.parametrize("probe", ["rope3d_published", "rope3d_small"])
def test_keys_turn_with_time_as_in_the_reference(fixture, probe):
    p = fixture["probes"][probe]
    table = video_rotary(p["positions_tyx"], tuple(p["split_tyx"]), p["theta"])
    assert error(table.apply(p["tokens"]), p["output"]) <= ROUNDING


def test_single_functions_equal_the_reference(fixture, model):
    p = fixture["probes"]
    assert (
        error(rotary(p["rope2d"]["positions_yx"], 64).apply(p["rope2d"]["tokens"]), p["rope2d"]["output"]) <= ROUNDING
    )
    pose, k = decode_pose(p["pose_encoding"]["input"], tuple(p["pose_encoding"]["image_size_hw"]))
    assert error(pose, p["pose_encoding"]["world_from_camera"]) <= ROUNDING
    assert error(invert_rigid(pose), p["pose_encoding"]["camera_from_world"]) <= ROUNDING
    assert error(k, p["pose_encoding"]["intrinsics"]) <= ROUNDING
    for slots in p["special_tokens"]:
        state = StreamState() if slots["cached_frames"] == 0 else began(slots["scale_frames"])
        got = model.special_tokens(slots["new_frames"], CausalPass(state, slots["new_frames"], StreamParameters()))
        assert torch.equal(got[0], slots["output"])


def began(frames, **parameters):
    """A stream after its scale frames, of one block and head, whose keys are 100 frame + token."""
    return fed(StreamState(), frames, **parameters)


def fed(state, frames, tokens=10, special=6, **parameters):
    passed = CausalPass(state, frames, StreamParameters(**parameters))
    key = torch.arange(tokens) + 100 * torch.arange(passed.first, passed.first + frames)[:, None]
    key = key.view(1, 1, -1, 1)
    passed.placed(torch.zeros(key.shape[2], 2), special, lambda *_: None)
    passed.recall(0, key, key, key, None)
    return passed.after()


def test_what_leaves_the_local_window_is_what_the_reference_evicts(fixture):
    for p in fixture["probes"]["eviction"]:
        state = began(p["scale_frames"], window=p["window"])
        for _ in range(p["frames"] - p["scale_frames"]):
            state = fed(state, 1, window=p["window"])
        whole = torch.cat([k.keys[0].view(-1, 10) for k in (state.scale, *state.local)])
        assert torch.equal(whole, p["k"])
        if p["k_special"] is None:
            assert state.trajectory is None
        else:
            assert torch.equal(state.trajectory.keys[0].view(-1, 6), p["k_special"])


def test_motion_between_two_views_equals_the_reference(fixture):
    """What its flow keyframes go by; ours are keyframes.py. It holds the pose convention and the intrinsics to one another."""
    p = fixture["probes"]["flow_magnitude"]
    depth, size = p["depth"][0, 0, ..., 0], p["depth"].shape[2:4]
    (pose, k), (other, other_k) = (decode_pose(p[name][0, 0], size) for name in ("pose_enc", "keyframe_pose_enc"))
    v, u = torch.meshgrid(*(torch.arange(0, n, p["stride"], dtype=torch.float32) for n in size), indexing="ij")
    z = depth[:: p["stride"], :: p["stride"]]
    points = torch.stack(((u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z, torch.ones_like(z)), dim=-1)
    seen = (points @ (invert_rigid(other) @ pose).T)[..., :3]
    uv = (seen @ other_k.T)[..., :2] / seen[..., 2:]
    flow = (uv - torch.stack((u, v), dim=-1)).norm(dim=-1)[seen[..., 2] > 0]
    assert flow.mean().item() == pytest.approx(p["output"], rel=1e-4)
