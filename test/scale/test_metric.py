"""What is believed, which unit a world has, and how what is learnt later reaches the map and nothing else."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from fakes import TruthBackbone, trajectory, truth_of
from refinement.test_images import flat, noise_texture
from scale.test_sources import driven, seen_of

from come_ros import geometry
from come_ros import pipeline as pipeline_module
from come_ros.config import Config
from come_ros.errors import ConfigError
from come_ros.pipeline import ReconstructionPipeline
from come_ros.refinement.state import Proposal
from come_ros.scale.decide import MODEL_SIGMA, believed
from come_ros.scale.metric import MetricScale, given
from come_ros.tracking.odometry import Located
from come_ros.types import NO_SCALE, Scale, SourceScale

SMALL = {
    "window.size": 4,
    "window.overlap": 2,
    "keyframe.mode": "every",
    "refine.mode": "none",
    "odometry.rate": "keyframe",
}


def config(**flat) -> Config:
    return Config.from_flat({**SMALL, **{k.replace("__", "."): v for k, v in flat.items()}})


# what is believed


def test_sources_that_agree_are_averaged_by_their_variances() -> None:
    belief = believed([SourceScale("odometry", 2.1, 0.04), SourceScale("depth", 2.0, 0.02)])
    assert belief.source == "depth+odometry" and not belief.conflict
    assert belief.metres == pytest.approx(np.exp(0.8 * np.log(2.0) + 0.2 * np.log(2.1)))
    assert belief.sigma == pytest.approx(0.02 * np.sqrt(0.8)) and believed([]).source == "none"


def test_sources_that_disagree_are_reported_and_the_more_trusted_one_is_believed() -> None:
    sources = [SourceScale("height", 1.0, 0.06), SourceScale("depth", 2.0, 0.02), SourceScale("odometry", 2.02, 0.03)]
    belief = believed(sources)
    assert belief.source == "depth+odometry" and belief.metres == pytest.approx(2.0, rel=0.01)
    assert (
        "height says 1 m per unit, depth 2: a factor of 2.00" in belief.conflict
        and "depth is believed" in belief.conflict
    )
    order = [believed([SourceScale(a, 1.0, 0.01), SourceScale(b, 2.0, 0.01)]).source for a, b in
             (("rig", "depth"), ("odometry", "rig"), ("height", "odometry"), ("model", "height"))]  # fmt: skip
    assert order == ["depth", "rig", "odometry", "height"]


# configuration


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ({"scale.mode": "height"}, "scale.height is 0: set it to the height of the camera"),
        ({"scale.mode": "height", "scale.height": -1.0}, r"scale.height is -1.0, but must lie in 0 .. 100"),
        ({"scale.mode": "rig"}, "cameras is empty"),
        ({"scale.mode": "depth", "cameras": "left+right"}, "set scale.mode to rig"),
        ({"scale.mode": "odometry", "known.metric": False}, "known.metric is false"),
        ({"scale.mode": "stereo"}, "auto, none, fixed, depth, rig, odometry, height"),
        ({"scale.height": float("nan")}, "scale.height"),
        ({"scale.max_sigma": 0.0}, "scale.max_sigma"),
    ],
)
def test_a_scale_that_cannot_work_is_refused_at_start(given_, text) -> None:
    with pytest.raises(ConfigError, match=text):
        Config.from_flat(given_)


def test_auto_takes_what_is_set_up_and_a_mode_reads_its_topic() -> None:
    assert Config().scale.mode == "auto" and Config().scale_sources == ()
    assert not Config.from_flat({"loop.enabled": False}).has_map_frame
    many = Config.from_flat({"loop.enabled": False, "known.depth": True, "known.odometry": True, "scale.height": 1.0})
    assert many.scale_sources == ("depth", "odometry", "height") and many.has_map_frame
    assert Config.from_flat({"cameras": "left+right"}).scale_sources == ("rig",)
    assert Config.from_flat({"known.depth": True, "known.metric": False}).scale_sources == ()
    assert Config.from_flat({"known.depth": True, "scale.mode": "none"}).scale_sources == ()
    depth = Config.from_flat({"scale.mode": "depth", "loop.enabled": False})
    assert (
        depth.reads_depth and not depth.known.depth and not depth.reads_odometry and depth.world_frame == "visual_map"
    )
    wheels = Config.from_flat({"scale.mode": "odometry", "tf.mode": "off"})
    assert wheels.reads_odometry and not wheels.has_map_frame and wheels.world_frame == "visual_odom"


# one world


def observed(config: Config, metric: bool = False, count: int = 8, odd: float = 1.0, **known) -> MetricScale:
    """A drive with exact depth and wheels as `known` asks for; odd: factor of the wheels."""
    scale = MetricScale(config, metric)
    truth, wheels = driven(4 * count)
    for start in range(0, 4 * count, 4):
        rows = range(start, start + 4)
        frames = [
            replace(
                truth.frames()[i], depth=truth.depth[i] if known.get("depth") else None,
                world_from_camera=geometry.transform_poses(odd, np.eye(3), np.zeros(3), wheels[i]) if known.get("wheels") else None,
            )
            for i in rows
        ]  # fmt: skip
        scale.observe(seen_of(truth, rows, frames), lost=start == 0)
        scale.history = [*getattr(scale, "history", []), scale.now]
    return scale


def test_depth_in_the_first_window_makes_the_world_metric() -> None:
    scale = observed(config(scale__mode="depth"), depth=True)
    first, last = scale.history[0], scale.now
    assert first.in_metres and first.unit == pytest.approx(2.5, rel=0.01) and first.source == "depth"
    assert last.unit == first.unit and last.correction == pytest.approx(1.0, abs=0.01) and 0 < last.sigma < 0.05
    assert last.stamp_ns and last.sources[0].readings == 8


def test_what_is_learnt_later_changes_no_unit() -> None:
    scale = observed(config(scale__mode="odometry", scale__min_motion=1.0), wheels=True)
    assert not scale.history[0].known and np.isnan(scale.history[0].metres) and scale.history[0].source == "none"
    assert scale.now.metres == pytest.approx(2.5, rel=0.03) and not scale.now.in_metres and scale.now.unit == 1.0
    assert scale.now.correction == scale.now.metres
    asked = observed(config(scale__mode="odometry", scale__min_motion=1.0, scale__restart=True), wheels=True)
    assert asked.may_restart and not scale.may_restart
    assert asked.renew().in_metres and asked.now.unit == asked.now.metres and not asked.may_restart


def test_nothing_measured_stays_unknown() -> None:
    for mode in ("auto", "none", "depth", "odometry"):
        scale = observed(config(scale__mode=mode))
        assert (
            not scale.now.known and np.isnan(scale.now.metres) and np.isnan(scale.now.sigma) and scale.now.unit == 1.0
        )
    assert dict(observed(config(scale__mode="depth")).now.left_out) == {"depth: no depth": 32}


def test_a_wide_estimate_is_not_known_yet() -> None:
    assert not observed(config(scale__mode="depth", scale__max_sigma=0.001), depth=True).now.known


def test_a_fixed_scale_that_changes_begins_with_the_next_world() -> None:
    c = config(scale__mode="fixed", scale__fixed=2.0)
    scale = observed(c)
    begun = scale.now
    assert begun == replace(given(c, False), unit=2.0) and begun.in_metres and begun.sigma == 0
    scale.config = config(scale__mode="fixed", scale__fixed=4.0)
    truth, _ = driven(4)
    assert scale.observe(seen_of(truth, range(4))) == begun
    scale.reset()
    assert scale.observe(seen_of(truth, range(4))).unit == 4.0


def test_a_metric_model_is_as_sure_as_such_models_are_and_may_be_corrected() -> None:
    alone = observed(config(), metric=True).now
    assert alone.in_metres and (alone.metres, alone.sigma, alone.source) == (1.0, MODEL_SIGMA, "model")
    helped = observed(config(known__depth=True), metric=True, depth=True).now
    assert helped.sigma < 0.05 and "model says 1 m" in helped.conflict and helped.metres == pytest.approx(2.5, rel=0.02)


def test_a_factor_of_two_between_sources_is_logged_once(caplog) -> None:
    with caplog.at_level(logging.WARNING, "come_ros"):
        scale = observed(config(known__depth=True, known__odometry=True), depth=True, wheels=True, odd=2.0)
    assert (
        scale.now.source == "depth" and "odometry says" in scale.now.conflict and "a factor of 2" in scale.now.conflict
    )
    assert len([r for r in caplog.records if "disagree" in r.message]) == 1


# through the pipeline


def run(truth, frames, **flat):
    pipeline = ReconstructionPipeline(config(**flat), TruthBackbone(truth, scales=(0.5, 2.0), seed=1))
    return pipeline, list(pipeline.run(frames))


def test_a_depth_topic_makes_odometry_metric_from_the_first_pose_on() -> None:
    truth, _ = driven(16)
    frames = [replace(f, depth=d) for f, d in zip(truth.frames(), truth.depth, strict=True)]
    _, submaps = run(truth, frames, scale__mode="depth")
    poses = np.concatenate([s.odom_from_camera for s in submaps])
    way = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    true = np.linalg.norm(np.diff(truth.world_from_camera[: len(poses), :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(way, true, rtol=0.02, atol=1e-4)
    np.testing.assert_allclose(submaps[0].depth[0], truth.depth[0], rtol=0.02)
    assert all(s.scale.in_metres for s in submaps)


@pytest.mark.parametrize("mount", [None, geometry.BODY_FROM_OPTICAL])
def test_level_is_known_only_where_the_camera_is_known_to_sit_on_the_robot(mount, monkeypatch) -> None:
    truth, _ = driven(8)
    levels = []
    watched = MetricScale.observe
    monkeypatch.setattr(
        MetricScale, "observe", lambda s, seen, lost=False: levels.append(seen.level) or watched(s, seen, lost)
    )
    frames = [replace(f, base="base_link", base_from_camera=mount) for f in truth.frames()]
    run(truth, frames, scale__mode="none")
    assert len(levels) > 1 and set(levels) == {mount is not None}


@pytest.mark.parametrize(("known", "reaches"), [(True, True), (False, False)])
def test_wheels_that_only_measure_the_scale_are_not_passed_to_the_bundle(known, reaches, monkeypatch) -> None:
    truth, wheels = driven(4)
    frames = [replace(f, world_from_camera=w) for f, w in zip(truth.frames(), wheels, strict=True)]
    asked = []
    monkeypatch.setattr(pipeline_module, "Proposal", lambda *args: asked.append(args[-1]) or Proposal(*args))
    run(truth, frames, scale__mode="odometry", known__odometry=known)
    assert asked and set(asked) == {reaches}


@pytest.mark.slow
def test_odometry_that_comes_to_know_metres_restarts_only_if_it_is_asked_to() -> None:
    truth, wheels = driven(40)
    frames = [replace(f, world_from_camera=w) for f, w in zip(truth.frames(), wheels, strict=True)]
    pipeline, submaps = run(truth, frames, scale__mode="odometry", scale__min_motion=1.0)
    assert pipeline.world == 0 and not submaps[-1].scale.in_metres and submaps[-1].scale.known
    ours = np.concatenate([s.odom_from_camera for s in submaps])[:, :3, 3]
    true = truth.world_from_camera[: len(ours), :3, 3]
    assert geometry.umeyama(ours, true)[0] == pytest.approx(submaps[-1].scale.correction, rel=0.03)

    pipeline, submaps = run(truth, frames, scale__mode="odometry", scale__min_motion=1.0, scale__restart=True)
    assert pipeline.world == 1 == submaps[-1].world and pipeline.counts["resets"] == 1 and pipeline.counts["jumps"] == 0
    last = [s for s in submaps if s.world == 1]
    assert all(s.scale.in_metres for s in last) and len(last) > 3
    poses = np.concatenate([s.odom_from_camera for s in last])
    np.testing.assert_allclose(poses[0, :3, 3], 0, atol=1e-9)
    true = truth.world_from_camera[len(truth) - len(poses) :]
    true = true[: len(poses)]
    way, real = (np.linalg.norm(np.diff(p[:, :3, 3], axis=0), axis=1) for p in (poses, true))
    np.testing.assert_allclose(way, real, rtol=0.05)


@pytest.mark.slow
def test_a_restart_in_metres_keeps_tracks_and_poses_of_all_images() -> None:
    truth = flat(noise_texture(1200, 2400))
    backbone = TruthBackbone(truth, scales=(0.5, 0.5))
    backbone.native_side = truth.images.shape[2]
    flags = {"window.reuse": False, "refine.mode": "bundle", "odometry.rate": "image", "scale.mode": "odometry",
             "scale.restart": True, "scale.max_sigma": 0.2}  # fmt: skip
    pipeline = ReconstructionPipeline(config().replace(**flags), backbone)
    located: list[Located] = []
    frames = [replace(f, world_from_camera=w) for f, w in zip(truth.frames(True), truth.world_from_camera, strict=True)]
    submaps = list(pipeline.run(frames, located=located.extend))
    assert submaps[0].world == 0 and submaps[-1].world == 1 == pipeline.odometry.world
    assert [p.frame.stamp_ns for p in located] == truth.stamps_ns.tolist() and not any(p.lost for p in located)
    after = [p for p in located if p.scale.in_metres]
    assert 6 < len(after) < len(located)
    ours = np.stack([p.odom_from_camera for p in after])
    real = truth.world_from_camera[-len(after) :]
    steps, true = (geometry.inverse(p[:-1]) @ p[1:] for p in (ours, real))
    np.testing.assert_allclose(steps[:, :3, 3], true[:, :3, 3], atol=0.02)
    ways = [np.linalg.norm(p[-1, :3, 3] - p[0, :3, 3]) for p in (ours, real)]
    assert ways[0] == pytest.approx(ways[1], rel=0.1), "metres at once, not faded in"


def test_scale_values_are_plain_and_comparable() -> None:
    assert Scale() == NO_SCALE or np.isnan(NO_SCALE.metres)
    assert not NO_SCALE.known and NO_SCALE.correction == 1.0 and Scale(3.0, 0.1, "rig", unit=2.0).correction == 1.5


def test_trajectories_of_a_still_camera_are_left_alone() -> None:
    truth = truth_of(trajectory("static", 8), 56, 70, 60.0)
    frames = [replace(f, world_from_camera=p) for f, p in zip(truth.frames(), truth.world_from_camera, strict=True)]
    _, submaps = run(truth, frames, scale__mode="odometry")
    assert not submaps[-1].scale.known and dict(submaps[-1].scale.left_out) == {"odometry: standing": 7}
