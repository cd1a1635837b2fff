"""The pipeline with a causal backbone: streams begin, go on and begin again; live and offline see the same; knobs and memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes import trajectory, truth_of
from models import bundled_as_stream, tiny

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.config import Config
from come_ros.datasets.rooms.rooms import render_sequence
from come_ros.errors import ConfigError, OutOfMemory
from come_ros.geometry import umeyama
from come_ros.governor import Governor
from come_ros.pipeline import ReconstructionPipeline
from come_ros.types import Frame

TRUTH = truth_of(trajectory("curve", 24))


def config_of(**more):
    flat = {"keyframe.mode": "every", "window.size": 4, "window.overlap": 2, "stream.window": 4, "refine.mode": "none"}
    return Config.from_flat({**flat, **{k.replace("__", "."): v for k, v in more.items()}})


class Recorded(TorchBackbone):
    """Notes how many frames each pass ran, and their outputs by name."""

    def _run_pass(self, images, names, *more):
        out = super()._run_pass(images, names, *more)
        self.passes.append(len(names))
        self.seen.update(dict(zip(names, zip(out.window_from_camera, out.depth, strict=True), strict=True)))
        return out


def backbone_of():
    backbone = Recorded("lingbot", tiny("lingbot"), NoAccelerator(), device="cpu")
    backbone.passes, backbone.seen = [], {}
    return backbone


def pipeline_of(**more):
    backbone = backbone_of()
    return ReconstructionPipeline(config_of(**more), backbone), backbone


def live(pipeline, frames):
    """As the node does where the newest results are wanted: a window as soon as one is worth it."""
    for frame in frames:
        pipeline.add_frame(frame)
        if (window := pipeline.take_window(pipeline.least_new)) is not None:
            yield pipeline.reconstruct(window)


def moved(frames, seconds):
    return [dataclasses.replace(f, stamp_ns=f.stamp_ns + int(seconds * 1e9)) for f in frames]


@pytest.mark.parametrize("mode", ["none", pytest.param("bundle", marks=pytest.mark.slow)])
def test_offline_runs_repeat_bit_for_bit_and_use_every_frame_once(mode):
    runs = []
    for _ in range(2):
        pipeline, backbone = pipeline_of(refine__mode=mode)
        runs.append([(s.depth, s.odom_from_camera) for s in pipeline.run(TRUTH.frames()[:14])])
        assert backbone.passes == [4] + [1] * 10 and sum(len(d) for d, _ in runs[-1]) == 14
    for (a, pose_a), (b, pose_b) in zip(*runs, strict=True):
        assert np.array_equal(a, b) and np.array_equal(pose_a, pose_b)


def test_live_and_offline_give_the_model_the_same_stream():
    """Whatever the windows: one frame each live, several offline."""
    (offline, a), (online, b) = pipeline_of(), pipeline_of()
    frames = TRUTH.frames()[:12]
    list(offline.run(frames))
    submaps = list(live(online, frames))
    assert [len(s) for s in submaps] == [4, *[1] * 8]  # a stream begins with a whole window
    assert a.seen.keys() == b.seen.keys() and len(a.seen) == 12
    for name, (pose, depth) in a.seen.items():
        assert np.array_equal(pose, b.seen[name][0]) and np.array_equal(depth, b.seen[name][1])
    assert offline.stream == online.stream
    assert (
        offline.stream.frames == 12 and offline.stream.local == 4 and 0 < offline.stream.mib <= offline.stream.most_mib
    )


def test_within_a_stream_scale_and_pose_go_on_unchanged():
    pipeline, backbone = pipeline_of()
    submaps = list(live(pipeline, TRUTH.frames()[:10]))
    assert all(s.alignment.accepted for s in submaps)
    for s in submaps[1:]:
        assert s.alignment.scale == submaps[0].alignment.scale
        assert s.alignment.rotation_residual < 1e-5 and s.alignment.translation_residual < 1e-5
    first = backbone.seen[(submaps[0].frames[0].stamp_ns, submaps[0].frames[0].camera)][0]
    for s in submaps:
        for frame, pose in zip(s.frames, s.odom_from_camera, strict=True):
            ours = np.linalg.inv(submaps[0].odom_from_camera[0]) @ pose
            theirs = np.linalg.inv(first) @ backbone.seen[(frame.stamp_ns, frame.camera)][0]
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_stream_that_is_full_begins_again_and_carries_pose_and_scale_over():
    pipeline, backbone = pipeline_of(stream__most=7, window__overlap=3)
    submaps = list(live(pipeline, TRUTH.frames()[:10]))
    assert backbone.passes == [4, 1, 1, 1, 4, 1, 1]  # frames 4 to 7 are the next scale frames; three of them are shared
    again = submaps[4]
    assert again.alignment.shared == 3 and len(again) == 1 and all(s.alignment.accepted for s in submaps)
    step = np.linalg.norm(again.odom_from_camera[0, :3, 3] - submaps[3].odom_from_camera[0, :3, 3])
    assert np.isfinite(step) and pipeline.stream.frames == 6


@pytest.mark.parametrize("what", ["gap", "size", "reset", "keep_pose", "refused"])
def test_after_a_break_a_stream_begins_with_a_whole_window(what):
    pipeline, backbone = pipeline_of(on_time_jump="keep_pose" if what == "keep_pose" else "reset")
    frames = TRUTH.frames()
    list(live(pipeline, frames[:6]))
    assert backbone.passes == [4, 1, 1] and pipeline.least_new == 1
    later = frames[6:13]
    if what == "gap":
        later = moved(later, 10.0)
    elif what == "size":
        later = [dataclasses.replace(f, image=np.ascontiguousarray(f.image[:, :-28])) for f in later]
    elif what == "reset":
        pipeline.reset()
    elif what == "keep_pose":
        later = moved(later, -100.0)
    else:
        pipeline._window.forget()
    backbone.passes.clear()
    submaps = list(live(pipeline, later))
    assert backbone.passes[0] == 4 == len(submaps[0])
    if what != "keep_pose":  # there the first frames only confirm the jump
        assert sum(len(s) for s in submaps) == 7
    assert set(backbone.passes[1:]) <= {1} and submaps[0].alignment.shared == 0
    if what == "gap":
        assert pipeline.counts["gaps"] == 1 and pipeline.counts["resets"] == 0


def test_several_cameras_are_refused():
    with pytest.raises(ConfigError, match="cameras names 2, but the backbone lingbot is a stream of one camera"):
        pipeline_of(cameras="left+right")


@pytest.mark.slow
def test_the_bundle_refines_what_a_stream_predicts():
    """The bundled model run as a stream, in a room: the poses that come out are good to a small part of the way."""
    room = render_sequence(20000600, 16, 320, 240, rate_hz=5.0)
    frames = [
        Frame(image, int(stamp), "camera", room.intrinsics)
        for image, stamp in zip(room.images, room.stamps_ns, strict=True)
    ]
    backbone = TorchBackbone("lingbot", bundled_as_stream(), NoAccelerator(), device="cpu")
    pipeline = ReconstructionPipeline(Config.from_flat({"device": "cpu", "threads": 1}), backbone)
    submaps = list(pipeline.run(frames))
    assert pipeline.stream.frames == sum(len(s) for s in submaps) >= 10 and pipeline.counts["refused"] == 0
    assert all(s.refinement.refined > 0 for s in submaps)
    poses = {f.stamp_ns: pose for s in submaps for f, pose in zip(s.frames, s.odom_from_camera, strict=True)}
    used = [i for i, stamp in enumerate(room.stamps_ns) if int(stamp) in poses]
    ours, true = np.stack(list(poses.values()))[:, :3, 3], room.world_from_camera[used, :3, 3]
    scale, rotation, translation = umeyama(ours, true)
    error = np.linalg.norm(scale * ours @ rotation.T + translation - true, axis=1)
    assert np.sqrt((error**2).mean()) < 0.03 * np.linalg.norm(np.diff(true, axis=0), axis=1).sum()


def test_where_memory_ends_the_stream_begins_again_with_less():
    pipeline, backbone = pipeline_of(window__overlap=1)
    frames = TRUTH.frames()
    list(live(pipeline, frames[:6]))
    run, calls = backbone._run_pass, []

    def short(*more):
        calls.append(1)
        if len(calls) == 1:
            raise OutOfMemory("full")
        return run(*more)

    pipeline.backbone._run_pass = short
    pipeline.add_frame(frames[6])
    submap = pipeline.reconstruct(pipeline.take_window(1))
    assert len(submap) == 1 and pipeline.governor.state.ladder_step == 1
    assert pipeline.backbone.stream.window == 2 and pipeline.stream.frames == 2  # a window of two began it


def test_the_governor_turns_the_local_window_and_keeps_the_time_it_covers():
    clock = [0.0]
    config = Config.from_flat({"latency_target_ms": 100.0, "stream.window": 64, "window.size": 8})
    governor = Governor(config, 518, 14, lambda: clock[0], causal=True)
    seen = []
    for _ in range(60):
        clock[0] += 6.0
        governor.observe(0.5, 1)
        applied = governor.apply()
        seen.append(
            (applied.stream.window, applied.stream.keyframe_interval, applied.window.size, applied.input.max_side)
        )
    windows = [w for w, *_ in seen]
    assert windows == sorted(windows, reverse=True) and min(windows) == 3 and seen[-1][3] < 518
    assert all(interval == round(64 / window) for window, interval, *_ in seen)
    assert all(size == min(8, window) for window, _, size, _ in seen)
    assert governor.state.limited
    for _ in range(400):
        clock[0] += 6.0
        governor.observe(0.001, 1)
    assert governor.apply() == config


def test_a_windowed_backbone_has_the_knobs_it_had():
    config = Config.from_flat({"latency_target_ms": 100.0})
    governor = Governor(config, 518, 14, lambda: 0.0)
    assert governor.effort.window == config.window.size and governor.apply() is config
