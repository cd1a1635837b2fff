import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from fakes import Noise, TruthBackbone, aligned_error, trajectory, truth_of
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros import geometry
from come_ros.alignment import WindowAligner, unusable, weighted_median

HUGE_TURN = geometry.rotation_from_vector([0.5, 0.6, -0.4])


def chain(truth, backbone, windows, size=8, overlap=4, aligner=None):
    """Poses, depth and alignments of consecutive windows that share `overlap` frames."""
    aligner = aligner or WindowAligner(size)
    frames, poses, alignments, depths = truth.frames(), [], [], []
    for w in range(windows):
        start = w * (size - overlap)
        part = tuple(frames[start : start + size])
        prediction = backbone.predict(np.stack([f.image for f in part]))
        alignment, odom_from_camera = aligner.align(part, prediction)
        alignments.append(alignment)
        new = slice(overlap if w else 0, None)
        if alignment.accepted:
            depth = prediction.depth[new] * alignment.scale
            aligner.commit(part[new], alignment.scale, odom_from_camera[new], depth, prediction.confidence[new])
            poses.append(odom_from_camera[new])
            depths.append(depth)
    return np.concatenate(poses), np.concatenate(depths), alignments


def first_gauge_error(poses, depths, truth):
    """Largest errors of position (m), rotation (rad) and scale; only pose and unit of the first frame are fitted."""
    true = truth.world_from_camera[: len(poses)]
    unit = np.median(depths[0] / truth.depth[0])
    relative = geometry.inverse(poses[0]) @ poses
    relative[:, :3, 3] /= unit
    expected = geometry.inverse(true[0]) @ true
    angle = geometry.rotation_angle(np.swapaxes(relative[:, :3, :3], -1, -2) @ expected[:, :3, :3])
    drift = np.abs(np.log(np.median((depths / truth.depth[: len(depths)]).reshape(len(depths), -1), axis=1) / unit))
    return np.abs((relative - expected)[:, :3, 3]).max(), angle.max(), drift.max()


@pytest.mark.parametrize("kind", ["curve", "line", "rotation", "static"])
@pytest.mark.parametrize("overlap", [1, 4])
def test_twenty_windows_give_back_the_trajectory(kind, overlap):
    truth = truth_of(trajectory(kind, 20 * (8 - overlap) + overlap))
    poses, depths, alignments = chain(truth, TruthBackbone(truth, scales=(0.1, 10.0)), 20, overlap=overlap)
    assert all(a.accepted and a.reason == "" for a in alignments) and len(poses) == len(truth)
    assert [a.shared for a in alignments] == [0] + [overlap] * 19
    assert max(first_gauge_error(poses, depths, truth)) < 1e-5
    assert max(a.depth_residual + a.rotation_residual + a.translation_residual for a in alignments) < 1e-5


def test_the_world_begins_level_at_the_first_camera():
    truth = truth_of(trajectory("curve", 8))
    poses, _, alignments = chain(truth, TruthBackbone(truth), 1)
    assert np.allclose(poses[0], geometry.BODY_FROM_OPTICAL, atol=1e-12) and alignments[0].scale == 1


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["curve", "line", "rotation", "static"]),
    st.integers(1, 7),
    st.floats(0.02, 50),
)
def test_any_gauge_any_overlap(seed, kind, overlap, spread):
    truth = truth_of(trajectory(kind, 8 + 3 * (8 - overlap)), seed=seed % 100)
    scales = (min(1.0, spread), max(1.0, spread))
    poses, depths, _ = chain(truth, TruthBackbone(truth, scales=scales, seed=seed), 4, overlap=overlap)
    assert max(first_gauge_error(poses, depths, truth)) < 1e-4


def test_noise_averages_out_over_shared_frames():
    truth = truth_of(trajectory("curve", 84))
    noise = Noise(pixel=0.1, frame=0.03, rotation=0.005, position=0.01)
    errors = []
    for seed in range(3):
        poses, _, alignments = chain(truth, TruthBackbone(truth, noise=noise, seed=seed), 20)
        assert all(a.accepted for a in alignments)
        errors.append(aligned_error(poses, truth.world_from_camera)[:2])
    position, angle = np.mean(errors, axis=0)
    assert position < 0.05 and angle < 0.1  # of a path of 5 m; measured 0.026 m and 0.045 rad


def wrong(frame):
    """Spoils one frame of every window but the first: depth tripled, turned by 50 deg, moved by half a metre."""

    def spoil(window, prediction):
        if window == 0:
            return prediction
        depth, poses = prediction.depth.copy(), prediction.window_from_camera.copy()
        depth[frame] *= 3
        poses[frame, :3, :3] = HUGE_TURN @ poses[frame, :3, :3]
        poses[frame, :3, 3] += 0.5
        return replace(prediction, depth=depth, window_from_camera=poses)

    return spoil


@pytest.mark.parametrize("kind", ["curve", "rotation", "static"])
@pytest.mark.parametrize("frame", [0, 1, 3])
def test_one_wrong_frame_of_four_changes_nothing(kind, frame):
    truth = truth_of(trajectory(kind, 40))
    poses, depths, alignments = chain(truth, TruthBackbone(truth, spoil=wrong(frame)), 9)
    assert all(a.accepted for a in alignments)
    assert max(first_gauge_error(poses, depths, truth)) < 0.01
    assert max(a.rotation_residual for a in alignments) < 0.01  # of the frames that count


def test_one_wrong_frame_of_four_among_noise():
    truth = truth_of(trajectory("curve", 60))
    noise = Noise(pixel=0.1, frame=0.02, rotation=0.005, position=0.01)
    clean, spoilt = (
        np.mean(
            [
                aligned_error(
                    chain(truth, TruthBackbone(truth, noise=noise, seed=s, spoil=spoil), 14)[0], truth.world_from_camera
                )[0]
                for s in range(3)
            ]
        )
        for spoil in (None, wrong(1))
    )
    assert spoilt < 1.5 * clean + 0.01


def test_outlying_pixels_and_unsure_ones_do_not_move_the_scale():
    def spoil(window, prediction):
        rng = np.random.default_rng(window)
        depth, confidence = prediction.depth.copy(), np.full_like(prediction.confidence, 5)
        depth[rng.random(depth.shape) < 0.2] *= 4
        unsure = rng.random(depth.shape) < 0.2
        depth[unsure] *= 0.1
        confidence[unsure] = 1.01
        depth[rng.random(depth.shape) < 0.05] = np.nan
        return replace(prediction, depth=depth, confidence=confidence)

    truth = truth_of(trajectory("curve", 24))
    poses, _, alignments = chain(truth, TruthBackbone(truth, spoil=spoil), 5)
    assert [a.reason for a in alignments] == [""] * 5 and np.isfinite(poses).all()
    unit = np.linalg.norm(poses[-1, :3, 3] - poses[0, :3, 3]) / np.linalg.norm(
        truth.world_from_camera[-1, :3, 3] - truth.world_from_camera[0, :3, 3]
    )
    first = np.linalg.norm(poses[4, :3, 3] - poses[0, :3, 3]) / np.linalg.norm(
        truth.world_from_camera[4, :3, 3] - truth.world_from_camera[0, :3, 3]
    )
    assert unit == pytest.approx(first, rel=0.01)


def second_window(spoil):
    truth = truth_of(trajectory("curve", 12))
    aligner = WindowAligner(8)
    backbone = TruthBackbone(truth, spoil=lambda w, p: p if w == 0 else spoil(p))
    poses, _, alignments = chain(truth, backbone, 2, aligner=aligner)
    return poses, alignments[1], aligner, truth


def spoilt_poses(prediction):
    poses = prediction.window_from_camera.copy()
    poses[1, 0, 3] = np.inf
    return replace(prediction, window_from_camera=poses)


def turned_apart(prediction):
    poses = prediction.window_from_camera.copy()
    for i, pose in enumerate(poses):
        pose[:3, :3] = geometry.rotation_from_vector([0, 0, 0.9 * i]) @ pose[:3, :3]
    return replace(prediction, window_from_camera=poses)


def moved_apart(prediction):
    poses = prediction.window_from_camera.copy()
    poses[:, :3, 3] += 20 * np.random.default_rng(0).standard_normal((8, 3))
    return replace(prediction, window_from_camera=poses)


def other_scene(prediction, spread=2.0, factor=1.0):
    noise = factor * np.exp(spread * np.random.default_rng(0).standard_normal(prediction.depth.shape))
    return replace(prediction, depth=(prediction.depth * noise).astype(np.float32))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoilt_poses, "poses are not finite"),
        (lambda p: replace(p, window_from_camera=np.zeros((8, 4, 4))), "no rotations"),
        (lambda p: replace(p, intrinsics=p.intrinsics * np.nan), "intrinsics are not finite"),
        (lambda p: replace(p, depth=p.depth * np.float32(np.nan)), "0% of the model's depth"),
        (lambda p: replace(p, depth=-p.depth), "0% of the model's depth"),
        (turned_apart, "poses of shared frames disagree by .* deg"),
        (moved_apart, "positions of shared frames disagree"),
        (other_scene, "depth of shared frames disagrees"),
        (lambda p: other_scene(p, 0.4, 20), "scale jumps by a factor"),
    ],
)
def test_windows_that_do_not_fit_are_refused_with_a_reason(spoil, reason):
    poses, alignment, aligner, truth = second_window(spoil)
    assert not alignment.accepted
    assert re.search(reason, alignment.reason), alignment.reason
    assert len(poses) == 8 and aligner.scale == 1 and np.isfinite(alignment.scale)
    # the chain goes on as if the window had never been
    good = TruthBackbone(truth, seed=5)
    part = tuple(truth.frames()[4:12])
    again, odom = aligner.align(part, good.predict(np.stack([f.image for f in part])))
    assert again.accepted and np.isfinite(odom).all()
    relative = geometry.inverse(odom[0]) @ odom[7]
    expected = geometry.inverse(truth.world_from_camera[4]) @ truth.world_from_camera[11]
    assert geometry.rotation_angle(relative[:3, :3].T @ expected[:3, :3]) < 1e-6


def test_poses_of_a_refused_window_are_the_last_one():
    truth = truth_of(trajectory("curve", 8))
    aligner = WindowAligner(8)
    bad = replace(TruthBackbone(truth).predict(truth.images), window_from_camera=np.full((8, 4, 4), np.nan))
    alignment, poses = aligner.align(tuple(truth.frames()), bad)
    assert not alignment.accepted and np.allclose(poses, geometry.BODY_FROM_OPTICAL)


def test_a_jump_of_scale_is_believed_when_the_depths_agree():
    poses, alignment, _, _ = second_window(
        lambda p: replace(
            p,
            depth=p.depth / 30,
            window_from_camera=geometry.transform_poses(1 / 30, np.eye(3), np.zeros(3), p.window_from_camera),
        )
    )
    assert alignment.accepted and alignment.scale > 7 and len(poses) == 12


def test_after_a_restart_the_next_window_goes_on_from_the_last_pose():
    truth = truth_of(trajectory("curve", 20))
    aligner = WindowAligner(8)
    poses, _, _ = chain(truth, TruthBackbone(truth), 2, aligner=aligner)
    scale = aligner.scale
    aligner.restart()
    part = tuple(truth.frames()[10:18])  # two of them are old
    alignment, odom = aligner.align(part, TruthBackbone(truth, seed=3).predict(truth.images[10:18]))
    assert alignment.accepted and alignment.shared == 0 and alignment.scale == scale
    assert np.allclose(odom[2], poses[11], atol=1e-9)
    aligner.reset()
    alignment, odom = aligner.align(part, TruthBackbone(truth, seed=3).predict(truth.images[10:18]))
    assert alignment.scale == 1 and np.allclose(odom[0], geometry.BODY_FROM_OPTICAL)


def test_frames_of_another_camera_are_not_shared_those_of_another_resolution_are():
    truth = truth_of(trajectory("static", 8))
    aligner = WindowAligner(8)
    prediction = TruthBackbone(truth).predict(truth.images)
    frames = tuple(truth.frames())
    _, odom = aligner.align(frames, prediction)
    aligner.commit(frames, 1.0, odom, prediction.depth, prediction.confidence)
    assert aligner.align(frames, prediction)[0].shared == 8
    assert aligner.align(tuple(truth.frames(camera="other")), prediction)[0].shared == 0
    half = np.stack([cv2.resize(im, (35, 28), interpolation=cv2.INTER_AREA) for im in truth.images])
    smaller = TruthBackbone(truth).predict(half)
    alignment, odom_again = aligner.align(frames, smaller)
    assert alignment.accepted and alignment.shared == 8 and alignment.depth_residual < 0.02
    ratio = np.median(prediction.depth) / np.median(smaller.depth)
    assert alignment.scale == pytest.approx(ratio, rel=0.02)
    np.testing.assert_allclose(odom_again, odom, atol=0.02)


def test_shared_frames_without_valid_depth_leave_the_scale_as_it_was():
    def spoil(prediction):
        depth = prediction.depth.copy()
        depth[:4] = np.nan
        return replace(prediction, depth=depth)

    _, alignment, _, _ = second_window(spoil)
    assert alignment.accepted and alignment.scale == 1 and alignment.depth_residual == 0


def test_memory_is_bounded():
    truth = truth_of(trajectory("line", 84))
    aligner = WindowAligner(8)
    chain(truth, TruthBackbone(truth), 20, aligner=aligner)
    assert len(aligner._published) == 8


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=1, max_size=20))
def test_weighted_median_equals_the_median_of_repeated_values(pairs):
    values, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    assert weighted_median(values, weights) == pytest.approx(np.median(np.repeat(values, weights.astype(int))))


def test_a_good_prediction_is_usable():
    truth = truth_of(trajectory("curve", 3))
    assert unusable(TruthBackbone(truth).predict(truth.images)) == ""


def test_metric_windows_keep_their_scale():
    """SE(3): windows whose unit wanders are laid together as they are, and no window's scale becomes that of the next."""
    truth = truth_of(trajectory("curve", 40))
    metric = WindowAligner(8, metric=True)
    exact, depths, alignments = chain(truth, TruthBackbone(truth, scales=(1.0, 1.0)), 9, aligner=metric)
    assert {a.scale for a in alignments} == {1.0} and all(a.accepted for a in alignments)
    np.testing.assert_allclose(depths, truth.depth, rtol=1e-5)
    expected = geometry.inverse(truth.world_from_camera[0]) @ truth.world_from_camera
    np.testing.assert_allclose(geometry.inverse(exact[0]) @ exact, expected, atol=1e-5)

    wandering = TruthBackbone(truth, scales=(0.95, 1.05), seed=4)
    _, depths, alignments = chain(truth, wandering, 9, aligner=WindowAligner(8, metric=True))
    assert {a.scale for a in alignments} == {1.0} and all(a.accepted for a in alignments)
    ratio = np.median((depths / truth.depth).reshape(len(depths), -1), axis=1)
    assert 0.94 < ratio.min() < ratio.max() < 1.06, "the depth is what the model said"
    assert max(a.depth_residual for a in alignments) > 0.01, "and that windows disagree is said"
    *_, similar = chain(truth, TruthBackbone(truth, scales=(0.95, 1.05), seed=4), 9)
    assert len({a.scale for a in similar}) == 9


def test_a_metric_window_of_another_unit_is_refused():
    truth = truth_of(trajectory("curve", 12))
    aligner = WindowAligner(8, metric=True)
    chain(truth, TruthBackbone(truth, scales=(1.0, 1.0)), 1, aligner=aligner)
    part = tuple(truth.frames()[4:12])
    images = np.stack([f.image for f in part])
    alignment, _ = aligner.align(part, TruthBackbone(truth, scales=(3.0, 3.0)).predict(images))
    assert not alignment.accepted and "depth of shared frames disagrees" in alignment.reason
