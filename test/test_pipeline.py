from dataclasses import replace

import numpy as np
import pytest
from fakes import START_NS, TruthBackbone, aligned_error, trajectory, truth_of

from come_ros import geometry
from come_ros.backbones.fake import STEP, FakeBackbone
from come_ros.camera.intrinsics import MOST_WINDOWS
from come_ros.camera.preprocess import crop_intrinsics, plan_resize
from come_ros.config import Config
from come_ros.errors import Cancelled, FrameError
from come_ros.outputs.motion import UNKNOWN, MotionEstimator, moving_frame
from come_ros.pipeline import MAX_REFUSED, ReconstructionPipeline
from come_ros.self_check import Comparison, SelfCheck, Speedups
from come_ros.types import Frame, Prediction

# what the network says, and nothing of tracks: see test_refine.py for those
CONFIG = Config().replace(**{"keyframe.mode": "every", "refine.mode": "none"})
TRUTH = truth_of(trajectory("curve", 22))


def pipeline_of(backbone, **parameters):
    return ReconstructionPipeline(CONFIG.replace(**{k.replace("__", "."): v for k, v in parameters.items()}), backbone)


def stamps(submaps):
    return [f.stamp_ns for s in submaps for f in s.frames]


def live(pipeline, frames):
    for frame in frames:
        if pipeline.add_frame(frame) is None:
            yield pipeline.reconstruct(pipeline.take_window(1))


@pytest.mark.parametrize("loop", [ReconstructionPipeline.run, live])
def test_frames_become_submaps_once_each_in_order(loop):
    backbone = TruthBackbone(TRUTH)
    submaps = list(loop(pipeline_of(backbone), TRUTH.frames()))
    assert stamps(submaps) == TRUTH.stamps_ns.tolist()
    assert aligned_error(np.concatenate([s.odom_from_camera for s in submaps]), TRUTH.world_from_camera)[0] < 1e-6
    depth = np.concatenate([s.depth for s in submaps])
    ratio = depth / TRUTH.depth
    assert ratio.max() / ratio.min() < 1.0001 and depth.dtype == np.float32
    for s in submaps:
        assert s.alignment.accepted and s.images.shape == (len(s), 56, 70, 3) and s.confidence.shape == s.depth.shape
        assert s.intrinsics.shape == (len(s), 3, 3) and set(s.timings_ms) == {"preprocess", "model", "align"}
        assert s.merged is None and s.kept_ratio == 1.0


def test_the_offline_cadence():
    backbone = TruthBackbone(TRUTH)
    submaps = list(pipeline_of(backbone).run(TRUTH.frames()))
    assert [len(s) for s in submaps] == [8, 4, 4, 4, 2]
    assert [len(seen) for seen in backbone.seen] == [8, 8, 8, 8, 8]  # the last one reaches back further
    assert backbone.seen[1] == list(range(4, 12))


def test_fewer_frames_than_a_window_still_come_out():
    assert [len(s) for s in pipeline_of(TruthBackbone(TRUTH)).run(TRUTH.frames()[:3])] == [3]
    assert list(pipeline_of(TruthBackbone(TRUTH)).run([])) == []


def test_the_fake_backbone_slides_sideways():
    submaps = list(pipeline_of(FakeBackbone()).run(TRUTH.frames()))
    poses = np.concatenate([s.odom_from_camera for s in submaps])
    # every window says the same of depth, so the steps add up: along the camera's x, which is the body's -y
    assert np.allclose(poses[:, :3, 3], np.outer(np.arange(22), [0, -STEP, 0]), atol=1e-6)
    again = list(pipeline_of(FakeBackbone()).run(TRUTH.frames()))
    assert all(np.array_equal(a.depth, b.depth) for a, b in zip(submaps, again, strict=True))


def test_stamps_must_rise_and_a_jump_back_start_again():
    pipeline = pipeline_of(TruthBackbone(TRUTH))
    frames = TRUTH.frames()
    first = list(live(pipeline, frames[:6]))
    assert pipeline.add_frame(frames[5]) == "time"
    assert pipeline.add_frame(replace(frames[5], stamp_ns=frames[5].stamp_ns - 1_000)) == "time"
    again = list(live(pipeline, frames[:6]))  # a bag that loops: two images must confirm the jump
    assert pipeline.counts["time"] == 4 and pipeline.counts["jumps"] == 1
    assert stamps(again) == stamps(first)[2:]
    assert np.allclose(again[0].odom_from_camera[0], geometry.BODY_FROM_OPTICAL, atol=1e-12)
    assert again[0].alignment.shared == 0


@pytest.mark.parametrize("how", ["reset", "keep_pose", "ignore"])
def test_a_jump_back_is_met_as_on_time_jump_says(how, caplog):
    pipeline = pipeline_of(FakeBackbone(), on_time_jump=how)
    frames = TRUTH.frames()
    first = list(live(pipeline, frames[:8]))
    assert pipeline.add_frame(replace(frames[0], stamp_ns=frames[7].stamp_ns - 100_000_000)) == "time", (
        "0.1 s is late only"
    )
    assert not caplog.records
    again = [pipeline.add_frame(f) for f in frames[:3]] if how == "ignore" else list(live(pipeline, frames[:10]))
    (record,) = caplog.records
    assert (
        f"stamps go back by 0.700 s, but may by 0.1 s at most: {{}} (on_time_jump is {how}"
        in record.getMessage().replace(
            {
                "reset": "a new map and odometry origin start",
                "keep_pose": "a new window continues from the last pose",
            }.get(how, "frames are dropped until their stamps are newer"),
            "{}",
        )
    )
    assert pipeline.counts["jumps"] == 1
    if how == "ignore":
        assert again == ["time"] * 3 and pipeline.add_frame(frames[8]) is None
        return
    assert stamps(again) == [f.stamp_ns for f in frames[2:10]] and again[0].alignment.shared == 0
    start = geometry.BODY_FROM_OPTICAL if how == "reset" else first[-1].odom_from_camera[-1]
    assert np.allclose(again[0].odom_from_camera[0], start, atol=1e-12)
    assert [s.alignment.shared for s in again[1:]] == list(range(1, 8))


def test_images_that_change_all_the_time_are_told_of_a_few_times_only(caplog):
    caplog.set_level("INFO", "come_ros")
    pipeline = pipeline_of(FakeBackbone(), input__max_side=112)
    image = np.zeros((56, 56, 3), np.uint8)
    for i in range(100):
        pipeline.add_frame(Frame(image, START_NS + i, encoding="rgb8" if i % 2 else "mono8"))
        pipeline.reconstruct(pipeline.take_window(1))
    assert pipeline.counts["changes"] == 99 and len(caplog.records) == 2


@pytest.mark.parametrize("shape", [(0, 0, 3), (15, 70, 3), (16, 129, 3), (400, 40, 3), (56, 70), (56, 70, 4)])
def test_images_that_cannot_be_used_are_left_out_and_said(shape, caplog):
    pipeline = pipeline_of(FakeBackbone())
    frames = TRUTH.frames()[:4]
    frames[2] = replace(frames[2], image=np.zeros(shape, np.uint8))
    assert stamps(pipeline.run(frames)) == [frames[i].stamp_ns for i in (0, 1, 3)]
    (record,) = caplog.records
    assert "a frame is left out: an image" in record.getMessage() and pipeline.counts["decode"] == 1
    with pytest.raises(
        FrameError, match=r"but must be \(H, W, 3\)|sides must be 16 px or more, and one at most 8 times"
    ):
        pipeline.add_frame(frames[2])


def test_frames_that_are_no_keyframes_are_counted():
    pipeline = pipeline_of(FakeBackbone(), keyframe__mode="time", keyframe__min_interval=0.2)
    answers = [pipeline.add_frame(f) for f in TRUTH.frames()[:5]]
    assert answers == [None, "not_keyframe", None, "not_keyframe", None]
    assert pipeline.counts["keyframes"] == 3 and pipeline.counts["not_keyframe"] == 2 and pipeline.fresh == 3


def test_a_cancelled_or_failed_window_costs_its_new_frames_only():
    def fail(images):
        if backbone.windows == 4:
            raise RuntimeError("out of memory")

    backbone = FakeBackbone(delay_s=0.0, fail_on=fail)
    pipeline = pipeline_of(backbone)
    frames = TRUTH.frames()
    submaps = list(live(pipeline, frames[:2]))
    pipeline.add_frame(frames[2])
    with pytest.raises(Cancelled):
        pipeline.reconstruct(pipeline.take_window(1), stop=lambda: True)
    pipeline.add_frame(frames[3])
    with pytest.raises(RuntimeError):
        pipeline.reconstruct(pipeline.take_window(1))
    submaps += live(pipeline, frames[4:6])
    assert stamps(submaps) == [frames[i].stamp_ns for i in (0, 1, 4, 5)]
    assert submaps[-1].alignment.shared == 3


def spoil_windows(*windows):
    def spoil(window, prediction):
        bad = window in windows
        return replace(prediction, window_from_camera=prediction.window_from_camera * np.nan) if bad else prediction

    return spoil


def test_refused_windows_leave_a_hole_and_the_chain_recovers():
    backbone = TruthBackbone(TRUTH, spoil=spoil_windows(3, 4))
    pipeline = pipeline_of(backbone)
    submaps = list(live(pipeline, TRUTH.frames()))
    assert [len(s) for s in submaps[:6]] == [1, 1, 1, 0, 0, 1] and pipeline.counts["refused"] == 2
    refused = submaps[3]
    assert not refused.alignment.accepted and "not finite" in refused.alignment.reason
    assert refused.depth.shape == (0, 56, 70) and refused.odom_from_camera.shape == (0, 4, 4)
    assert refused.intrinsics.shape == (0, 3, 3)
    poses = np.concatenate([s.odom_from_camera for s in submaps])
    index = [i for i in range(22) if i not in (3, 4)]
    assert aligned_error(poses, TRUTH.world_from_camera[index])[0] < 1e-6
    assert pipeline.counts["restarts"] == 0


def test_three_refused_in_a_row_start_again_where_the_camera_was():
    backbone = TruthBackbone(TRUTH, spoil=spoil_windows(5, 6, 7))
    pipeline = pipeline_of(backbone)
    submaps = list(live(pipeline, TRUTH.frames()))
    assert MAX_REFUSED == 3 and pipeline.counts["restarts"] == 1
    assert [len(s) for s in submaps[4:9]] == [1, 0, 0, 0, 1]
    assert "in a row" in submaps[7].alignment.reason and "in a row" not in submaps[6].alignment.reason
    after = submaps[8].alignment
    assert after.accepted and after.shared == 0 and after.scale == submaps[4].alignment.scale
    assert np.allclose(submaps[8].odom_from_camera[0], submaps[4].odom_from_camera[-1])
    assert submaps[-1].alignment.shared == 7


@pytest.mark.parametrize(
    ("change", "level", "told"),
    [
        ("pause", "WARNING", "no image for 6.1 s by the stamps, but pauses should be of 5 s at most"),
        ("size", "INFO", "images change from 70x56 px of camera_optical_frame to 112x112 px of camera_optical_frame"),
        ("camera", "INFO", "images change from 70x56 px of camera_optical_frame to 70x56 px of other"),
        (
            "encoding",
            "INFO",
            "images change from 70x56 px of camera_optical_frame to 70x56 px mono8 of camera_optical_frame",
        ),
    ],
)
@pytest.mark.parametrize("loop", [ReconstructionPipeline.run, live])
def test_after_a_break_the_world_goes_on_from_the_last_pose(loop, change, level, told, caplog):
    caplog.set_level("INFO", "come_ros")
    frames = TRUTH.frames()
    for i in range(10, 22):
        f = frames[i]
        if change == "pause":
            frames[i] = replace(f, stamp_ns=f.stamp_ns + 6_000_000_000)
        elif change == "size":
            frames[i] = replace(f, image=np.ascontiguousarray(f.image.repeat(2, axis=0).repeat(2, axis=1)[:, :-28]))
        elif change == "camera":
            frames[i] = replace(f, camera="other")
        else:
            frames[i] = replace(f, encoding="mono8")
    pipeline = pipeline_of(FakeBackbone())
    submaps = list(loop(pipeline, frames))
    assert stamps(submaps) == [f.stamp_ns for f in frames], "no frame is lost"
    if loop is not live:
        assert [len(s) for s in submaps] == [8, 2, 8, 4] and [s.alignment.shared for s in submaps] == [0, 6, 0, 4]
    poses = {t: p for s in submaps for t, p in zip(stamps([s]), s.odom_from_camera, strict=True)}
    assert np.allclose(poses[frames[10].stamp_ns], poses[frames[9].stamp_ns], atol=1e-9)
    assert pipeline.counts["gaps" if change == "pause" else "changes"] == 1 and pipeline.counts["jumps"] == 0
    (record,) = caplog.records
    assert record.levelname == level and told in record.getMessage() and "from the last pose" in record.getMessage()


def test_given_intrinsics_are_mapped_and_predicted_ones_settle():
    truth = truth_of(trajectory("static", 16), height=60, width=70)
    plan = plan_resize(70, 60, 112, 14)
    given = next(iter(pipeline_of(FakeBackbone(), input__max_side=112).run(truth.frames(intrinsics=True))))
    assert np.allclose(given.intrinsics, crop_intrinsics(truth.intrinsics, plan))

    focal = iter(range(100, 200, 2))
    backbone = TruthBackbone(
        truth, spoil=lambda w, p: replace(p, intrinsics=p.intrinsics * [[next(focal), 0, 1], [0, 100, 1], [0, 0, 1]])
    )
    backbone.native_side = 70
    got = [s.intrinsics[0, 0, 0] / truth.intrinsics[0, 0] for s in live(pipeline_of(backbone), truth.frames())]
    assert got[0] == pytest.approx(100) and got[1] == pytest.approx(102, abs=0.7)
    assert len(set(np.round(got[MOST_WINDOWS - 1 :], 9))) == 1 and np.isfinite(got).all()


def test_a_known_scale_multiplies_all_that_is_published():
    plain = list(pipeline_of(TruthBackbone(TRUTH)).run(TRUTH.frames()))
    fixed = list(pipeline_of(TruthBackbone(TRUTH), scale__mode="fixed", scale__fixed=2.5).run(TRUTH.frames()))
    ignored = list(pipeline_of(TruthBackbone(TRUTH), scale__fixed=2.5).run(TRUTH.frames()))
    for a, b, c in zip(plain, fixed, ignored, strict=True):
        assert np.allclose(b.depth, 2.5 * a.depth, rtol=1e-6) and np.array_equal(c.depth, a.depth)
        assert np.allclose(b.odom_from_camera[:, :3, 3], 2.5 * a.odom_from_camera[:, :3, 3])
        assert np.array_equal(b.odom_from_camera[:, :3, :3], a.odom_from_camera[:, :3, :3])
        assert b.alignment.scale == pytest.approx(2.5 * a.alignment.scale)


def test_depth_is_nan_only_where_the_model_gave_none():
    def spoil(window, prediction):
        depth = prediction.depth.copy()
        depth[:, 0, :4] = [np.nan, np.inf, 0, -1]
        return replace(prediction, depth=depth)

    submap = next(iter(pipeline_of(TruthBackbone(TRUTH, spoil=spoil)).run(TRUTH.frames())))
    assert np.isnan(submap.depth[:, 0, :4]).all() and np.isfinite(submap.depth[:, 0, 4:]).all()
    assert np.isfinite(submap.depth[:, 1:]).all()


def test_parameters_change_from_the_next_window_on():
    pipeline = pipeline_of(TruthBackbone(TRUTH))
    submaps = list(live(pipeline, TRUTH.frames()[:8]))
    pipeline.set_config(pipeline.config.replace(**{"window.size": 3, "window.overlap": 1}))
    submaps += live(pipeline, TRUTH.frames()[8:14])
    assert [s.alignment.shared for s in submaps[8:]] == [2] * 6
    pipeline.set_config(pipeline.config.replace(**{"window.size": 6, "window.overlap": 1, "keyframe.mode": "flow"}))
    submaps += live(pipeline, TRUTH.frames()[14:])
    assert submaps[-1].alignment.shared == 5
    poses = np.concatenate([s.odom_from_camera for s in submaps])
    index = np.searchsorted(TRUTH.stamps_ns, stamps(submaps))
    assert aligned_error(poses, TRUTH.world_from_camera[index])[0] < 1e-6


def test_reset_begins_a_new_world():
    pipeline = pipeline_of(TruthBackbone(TRUTH, scales=(3, 3)))
    list(live(pipeline, TRUTH.frames()[:9]))
    pipeline.reset()
    assert pipeline.room() == 8 and pipeline.fresh == 0
    submap = next(live(pipeline, TRUTH.frames()[3:]))
    assert np.allclose(submap.odom_from_camera[0], geometry.BODY_FROM_OPTICAL) and submap.alignment.scale == 1


def test_the_room_is_that_of_the_window():
    pipeline = pipeline_of(FakeBackbone(), window__size=3, window__overlap=1)
    for frame in TRUTH.frames()[:3]:
        pipeline.add_frame(frame)
    assert pipeline.room() == 0 and pipeline.take_window(4) is None
    with pytest.raises(ValueError, match="take it first"):
        pipeline.add_frame(TRUTH.frames()[3])
    pipeline.reconstruct(pipeline.take_window(1))
    assert pipeline.room() == 2 and pipeline.take_window(1) is None


@pytest.mark.slow
def test_memory_stays_flat_in_a_long_run():
    pipeline = pipeline_of(FakeBackbone(), window__size=3, window__overlap=1, input__max_side=112)
    image = np.zeros((56, 56, 3), np.uint8)
    frames = (Frame(image, START_NS + i * 100_000_000) for i in range(200))
    assert sum(len(s) for s in pipeline.run(frames)) == 200
    assert len(pipeline._aligner._published) <= 3 and len(pipeline._inputs._images) <= 3
    assert len(pipeline._window._used) <= 2


def test_without_a_backbone_the_configured_one_is_loaded():
    assert ReconstructionPipeline(CONFIG.replace(backbone="fake")).backbone.name == "fake"


@pytest.mark.slow
def test_self_check_compares_the_last_window_with_the_dense_model():
    from models import bundled_size, kept_by_come

    from come_ros.accelerators import CoMe
    from come_ros.accelerators.confidence import ConfidencePredictor
    from come_ros.backbones import load_backbone

    config = Config.from_flat({"window.size": 3, "window.overlap": 1, "keyframe.mode": "every", "device": "cpu"})
    pipeline = ReconstructionPipeline(config, load_backbone(config))
    assert SelfCheck(pipeline).measure() is None
    rng = np.random.default_rng(0)
    for i in range(3):
        pipeline.add_frame(Frame(rng.integers(0, 256, (84, 112, 3), np.uint8), i + 1))
    pipeline.reconstruct(pipeline.take_window())
    same = SelfCheck(pipeline).measure(1)
    assert (same["kept_ratio"], same["depth_abs_rel"], same["trans_rel"]) == (1.0, 0.0, 0.0)
    assert same["rot_deg"] < 0.02  # what the arc cosine of a rounded trace gives
    come = CoMe(ConfidencePredictor(160, 8).eval(), 1, ratio=1.0, group=(2, 2))
    pipeline.backbone = pipeline.backbone.accelerated(come)
    merged = SelfCheck(pipeline).measure(1)
    assert (
        merged["kept_ratio"] == pytest.approx(kept_by_come(*bundled_size(112, 84), 2, 1.0))
        and merged["depth_abs_rel"] > 0
        and merged["frames"] == 3
    )
    pipeline.set_config(Config.from_flat({**config.to_flat(), "accelerator.name": "come", "accelerator.ratio": 0.0}))
    assert SelfCheck(pipeline).measure(1)["depth_abs_rel"] == 0.0


def paired(times: list[tuple[float, float]], monkeypatch) -> SelfCheck:
    """One whose pairs of passes take so many ms, accelerated and dense."""
    left = iter(times)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    made = Prediction(images, np.ones((2, 8, 8), np.float32), np.ones((2, 8, 8), np.float32), np.tile(np.eye(4), (2, 1, 1)),
                      np.tile(np.eye(3), (2, 1, 1)))  # fmt: skip
    monkeypatch.setattr(SelfCheck, "compare", lambda self, stop=None: Comparison((1, 2), made, made, *next(left)))
    return SelfCheck(None)


def test_self_check_repeats_until_it_is_steady_or_says_that_it_is_not(monkeypatch):
    calm = paired([(10.0, 20.0), (10.0, 20.5), (10.0, 19.5)], monkeypatch).measure()
    assert calm["steady"] and calm["passes"] == 3 and calm["spread"] < 0.05 and calm["speedup"] == pytest.approx(2.0)
    late = [(10.0, 40.0), (10.0, 12.0), *[(10.0, 20.0)] * 10]  # it gets calm
    settled = paired(late, monkeypatch).measure()
    assert settled["steady"] and 3 < settled["passes"] < 12 and settled["speedup"] == pytest.approx(2.0)
    never = paired([(10.0, 10.0 if i % 2 else 40.0) for i in range(99)], monkeypatch).measure()
    assert not never["steady"] and never["passes"] == 12 and never["spread"] > 0.1
    assert not np.isfinite(Speedups().spread)


class Informed(TruthBackbone):
    """A metric one that writes down what it is told next to the images."""

    metric = True
    inputs = frozenset({"intrinsics", "depth", "poses"})

    def __init__(self, truth):
        super().__init__(truth, scales=(1.0, 1.0))
        self.told = []

    def predict(self, images, stop=None, known=None, step=None):
        self.told.append(known)
        return super().predict(images, stop)


def informed_frames(intrinsics=True, depth=True, poses=True):
    frames = TRUTH.frames(intrinsics=intrinsics)
    return [
        replace(f, depth=d if depth else None, world_from_camera=p if poses else None)
        for f, d, p in zip(frames, TRUTH.depth, TRUTH.world_from_camera, strict=True)
    ]


def test_what_frames_bring_next_to_images_reaches_the_model_as_configured():
    every = {"known__depth": True, "known__odometry": True}
    backbone = Informed(TRUTH)
    list(pipeline_of(backbone, **every).run(informed_frames()))
    known = backbone.told[1]
    frames = backbone.seen[1]
    plan = plan_resize(70, 56, backbone.native_side, backbone.patch_size)
    np.testing.assert_allclose(known.intrinsics, np.tile(crop_intrinsics(TRUTH.intrinsics, plan), (8, 1, 1)))
    np.testing.assert_array_equal(known.depth, TRUTH.depth[frames])
    np.testing.assert_array_equal(known.world_from_camera, TRUTH.world_from_camera[frames])
    assert known.metric

    backbone = Informed(TRUTH)
    list(pipeline_of(backbone, **every, known__intrinsics=False, known__metric=False).run(informed_frames()))
    assert np.isnan(backbone.told[0].intrinsics).all() and np.isfinite(backbone.told[0].depth).all()
    assert not backbone.told[0].metric

    backbone = Informed(TRUTH)
    list(pipeline_of(backbone).run(informed_frames()))  # intrinsics only, by default
    assert np.isnan(backbone.told[0].depth).all() and np.isnan(backbone.told[0].world_from_camera).all()

    backbone = Informed(TRUTH)
    list(pipeline_of(backbone, **every).run(informed_frames(False, False, False)))
    assert set(backbone.told) == {None}


def test_a_window_may_know_of_some_frames_only():
    backbone = Informed(TRUTH)
    frames = [f if i % 3 else replace(f, intrinsics=None, depth=None) for i, f in enumerate(informed_frames())]
    list(pipeline_of(backbone, known__depth=True).run(frames))
    given = [i % 3 != 0 for i in backbone.seen[0]]
    assert np.isfinite(backbone.told[0].intrinsics).all((1, 2)).tolist() == given
    assert np.isfinite(backbone.told[0].depth).all((1, 2)).tolist() == given


def test_a_model_that_takes_nothing_is_told_nothing():
    list(
        pipeline_of(TruthBackbone(TRUTH), known__depth=True).run(informed_frames())
    )  # its predict has no such argument


def test_a_metric_model_gives_metres_with_a_variance():
    submaps = list(pipeline_of(Informed(TRUTH)).run(TRUTH.frames()))
    assert all(s.metric and s.alignment.scale == 1.0 for s in submaps)
    np.testing.assert_allclose(np.concatenate([s.depth for s in submaps]), TRUTH.depth, rtol=1e-5)
    motion = MotionEstimator().step(submaps[0], 0, CONFIG)
    assert (motion.pose_variance < 1).all()
    unknown = MotionEstimator().step(next(iter(pipeline_of(TruthBackbone(TRUTH)).run(TRUTH.frames()))), 0, CONFIG)
    assert (unknown.pose_variance[:3] == UNKNOWN).all()
    doubled = list(pipeline_of(Informed(TRUTH), scale__mode="fixed", scale__fixed=2.0).run(TRUTH.frames()))
    np.testing.assert_allclose(np.concatenate([s.depth for s in doubled]), 2 * TRUTH.depth, rtol=1e-5)


def test_depth_that_means_nothing_is_left_out():
    sky = np.zeros((56, 70), bool)
    sky[:20] = True

    def with_sky(index, prediction):
        return replace(prediction, meaningful=np.tile(~sky, (len(prediction.depth), 1, 1)))

    for submap in pipeline_of(TruthBackbone(TRUTH, spoil=with_sky)).run(TRUTH.frames()):
        assert submap.alignment.accepted
        assert (np.isnan(submap.depth) == sky).all()


def test_compare_tells_both_models_what_is_known():
    backbone = Informed(TRUTH)
    backbone.dense = lambda: backbone
    pipeline = pipeline_of(backbone)
    list(pipeline.run(informed_frames()))
    backbone.told.clear()
    SelfCheck(pipeline).compare()
    assert len(backbone.told) == 4, "once untimed, once timed, each of both models"
    assert all(known is backbone.told[0] is not None for known in backbone.told)


def test_the_world_begins_at_the_robot_where_the_camera_is_known_to_sit_on_it():
    looking_down = (
        geometry.transform(geometry.rotation_from_vector([0, 0.4, 0]), [0.2, 0.0, 0.7]) @ geometry.BODY_FROM_OPTICAL
    )
    frames = [replace(f, base="base_link", base_from_camera=looking_down) for f in TRUTH.frames()]
    pipeline = pipeline_of(TruthBackbone(TRUTH, scales=(1.0, 1.0)), scale__mode="fixed", scale__fixed=1.0)
    submaps = list(pipeline.run(frames))
    names, poses = zip(*(moving_frame(s, row) for s in submaps for row in range(len(s))), strict=True)
    assert set(names) == {"base_link"}
    # as the robot really moved: from the origin, and about itself and not about the camera
    truth = TRUTH.world_from_camera @ geometry.inverse(looking_down)
    np.testing.assert_allclose(np.stack(poses), geometry.inverse(truth[0]) @ truth, atol=1e-5)
    np.testing.assert_allclose(submaps[0].odom_from_camera[0], looking_down, atol=1e-12)
    bare = list(pipeline_of(TruthBackbone(TRUTH)).run(TRUTH.frames()))
    name, pose = moving_frame(bare[0], 0)
    assert name == "camera_optical_frame" and np.array_equal(pose, bare[0].odom_from_camera[0])


def test_twists_are_those_of_the_robot_in_its_own_axes():
    ahead = (
        geometry.transform(np.eye(3), [1.0, 0.0, 0.0]) @ geometry.BODY_FROM_OPTICAL
    )  # one metre before the axis it turns about
    poses = np.stack(
        [geometry.transform(geometry.rotation_from_vector([0, 0, 0.05 * i]), np.zeros(3)) @ ahead for i in range(8)]
    )
    truth = truth_of(poses)
    frames = [replace(f, base="base_link", base_from_camera=ahead) for f in truth.frames()]
    (submap,) = pipeline_of(TruthBackbone(truth, scales=(1.0, 1.0)), scale__mode="fixed", scale__fixed=1.0).run(frames)
    motion, config = MotionEstimator(), CONFIG.replace(**{"scale.mode": "fixed"})
    twists = np.stack([motion.step(submap, row, config).twist for row in range(8)])
    np.testing.assert_allclose(twists[1:], np.tile([0, 0, 0, 0, 0, 0.5], (7, 1)), atol=1e-6)
