"""Loops: found where the camera is back, refused where it only looks so, and what follows of them."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from mapping.scenes import Scene, along, drifting, submap_of, wall

from come_ros import geometry
from come_ros.mapping import mapper as module
from come_ros.mapping.follow import in_map
from come_ros.mapping.keyframe import thumbnail_of
from come_ros.mapping.loops import compare
from come_ros.mapping.mapper import Mapper
from come_ros.mapping.view import view_of

THERE_AND_BACK = np.concatenate([np.linspace(2, 10, 24), np.linspace(10, 2, 24)[1:]])


def mapped(scene: Scene, real, odometry, monkeypatch: pytest.MonkeyPatch, **how) -> Mapper:
    """A mapper after all keyframes, whose views are those of the true poses."""
    mapper = Mapper(**{"metric": True, "most_keyframes": 1000, **how})
    for i, (true, told) in enumerate(zip(real, odometry, strict=True)):
        monkeypatch.setattr(module, "view_of", lambda *_, true=true, i=i: scene.view(true, seed=i))
        mapper.add(submap_of(i, told), 0)
    return mapper


def off(poses, real) -> float:
    return float(np.linalg.norm(poses[:, :3, 3] - real[:, :3, 3], axis=1).max())


@pytest.mark.parametrize("unit", [1.0, 1.4])
def test_two_views_of_a_place_tell_how_they_lie_and_of_another_place_nothing(unit: float) -> None:
    scene = wall()
    a, b = along(np.array([5.0]))[0], along(np.array([5.3]), 0.1)[0]
    found = compare(scene.view(a, seed=1), scene.view(b, unit, seed=2))
    assert found.reason == "" and found.first_from_second is not None and found.inliers > 25
    real = geometry.inverse(a) @ b
    np.testing.assert_allclose(found.first_from_second.poses()[0], real, atol=0.02)
    assert abs(found.first_from_second.scale[0] * unit - 1) < 0.02
    elsewhere = compare(scene.view(a), scene.view(along(np.array([15.0]))[0]))
    assert elsewhere.first_from_second is None and elsewhere.reason == "few descriptors match"
    assert compare(scene.view(a), Scene(np.empty((0, 3)), np.empty((0, 128), np.uint8)).view(a)).reason


@pytest.mark.slow
@pytest.mark.parametrize("metric", [True, False])
def test_coming_back_takes_the_drift_away_and_odometry_stays(metric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = along(THERE_AND_BACK)
    odometry = drifting(real, 3)
    before = odometry.copy()
    mapper = mapped(wall(), real, odometry, monkeypatch, metric=metric)
    stamps = np.arange(len(real), dtype=np.int64)
    corrected = in_map(stamps, odometry, mapper.corrections)
    assert mapper.counts.accepted > 3 and mapper.corrections.version > 0
    assert off(corrected[-1:], real[-1:]) < off(odometry[-1:], real[-1:]) / 3
    assert off(corrected, real) < off(odometry, real)
    assert np.array_equal(odometry, before)
    assert all(np.array_equal(k.odom_from_camera, odometry[k.stamp_ns]) for k in mapper.keyframes)
    latest = mapper.corrections.latest()
    assert geometry.is_finite_pose(latest, 1e-9), "TF carries no scale"
    np.testing.assert_allclose(latest @ odometry[-1], corrected[-1], atol=1e-9)
    again = mapped(wall(), real, odometry, monkeypatch, metric=metric)
    assert np.array_equal(again.corrections.map_from_odom.translation, mapper.corrections.map_from_odom.translation)


def test_without_a_loop_the_map_is_odometry_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = along(np.linspace(2, 14, 24))
    odometry = drifting(real)
    mapper = mapped(wall(), real, odometry, monkeypatch)
    assert mapper.counts.accepted == 0 and mapper.corrections.version == 0
    assert np.array_equal(mapper.corrections.latest(), np.eye(4))
    assert np.array_equal(in_map(np.arange(24), odometry, mapper.corrections), odometry)
    alone = mapped(wall(), real, odometry, monkeypatch, loops=False)
    assert alone.counts.offered == 0 and alone.keyframes[0].view is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_doors_that_are_all_alike_close_no_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = along(np.linspace(2, 14, 34))
    mapper = mapped(wall(period=2.0, seed=seed), real, drifting(real, seed), monkeypatch)
    assert mapper.counts.accepted == 0 and mapper.corrections.version == 0
    assert mapper.counts.refused["another place that looks the same"] > 10


@pytest.mark.slow
def test_a_place_that_looks_like_another_proves_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ends of a wall look alike: seen again, neither is believed; what lies between them is."""
    scene = wall(20.0, seed=5)
    copied = (scene.points[:, 0] > 2) & (scene.points[:, 0] < 6)
    other = (scene.points[:, 0] > 12) & (scene.points[:, 0] < 16)
    scene = Scene(
        np.concatenate([scene.points[~other], scene.points[copied] + [10, 0, 0]]),
        np.concatenate([scene.descriptors[~other], scene.descriptors[copied]]),
    )
    real = along(np.concatenate([np.linspace(4, 14, 26), np.linspace(14, 4, 26)[1:]]))
    odometry = drifting(real, 1)
    mapper = mapped(scene, real, odometry, monkeypatch)
    corrected = in_map(np.arange(len(real)), odometry, mapper.corrections)
    assert mapper.counts.refused["another place that looks the same"] > 0
    assert off(corrected, real) < max(0.15, off(odometry, real))


def test_keyframes_are_bounded_and_loops_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = along(THERE_AND_BACK)
    odometry = drifting(real, 3)
    mapper = mapped(wall(), real, odometry, monkeypatch, most_keyframes=16)
    assert len(mapper.keyframes) <= 16 == mapper.most and mapper.counts.accepted > 0
    assert len(mapper.nodes) == len(mapper.keyframes) == len(mapper.chain.first) + 1
    assert mapper.closed.second.max() < len(mapper.keyframes) and (mapper.closed.first >= 0).all()
    corrected = in_map(np.arange(len(real)), odometry, mapper.corrections)
    assert off(corrected[-1:], real[-1:]) < off(odometry[-1:], real[-1:]) / 2


def test_saving_a_map_leaves_the_mapper_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = along(np.linspace(2, 4, 6))
    mapper = mapped(wall(), real, real, monkeypatch)
    keyframe, some = mapper.keyframes[0], submap_of(9, real[0])
    mapper.keyframes[1] = dataclasses.replace(keyframe, thumbnail=thumbnail_of(some, 0, np.ones((12, 16), bool)))
    mapper._ambiguous = {k.key for k in mapper.keyframes}
    held = {name: copy.copy(value) if isinstance(value, (set, list)) else value for name, value in vars(mapper).items()}
    assert mapper.save("model", np.nan, np.nan, 0.1) is not None
    assert all(held[n] is v or held[n] == v for n, v in vars(mapper).items())


def test_a_still_camera_gives_one_keyframe_and_a_window_that_shares_nothing_is_loose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = along(np.full(10, 5.0))
    assert len(mapped(wall(), real, real, monkeypatch).keyframes) == 1
    mapper = Mapper(True, 100)
    monkeypatch.setattr(module, "view_of", lambda *_: wall(1.0).view(real[0]))
    mapper.add(submap_of(0, real[0]), 0)
    mapper.add(submap_of(1, along(np.array([5.5]))[0]), 0)
    lost = submap_of(2, along(np.array([6.0]))[0])
    object.__setattr__(lost, "alignment", module.Alignment(True, 0, 1.0))
    mapper.add(lost, 0)
    sure, loose = 1 / mapper.chain.root[:, 3, 3]
    assert loose > 20 * sure


def test_a_view_holds_features_with_their_depth_and_a_plain_image_none() -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (30, 40, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    depth = np.full((24, 32), 3.0, np.float32)
    depth[:, :4] = np.nan
    k = np.array([[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]])
    view = view_of(image, depth, k, None)
    assert 100 < len(view) <= 400 and view.usual_depth == 3.0 and abs(np.linalg.norm(view.place) - 1) < 1e-5
    assert np.isnan(view.depth).any() and np.nanmax(np.abs(view.depth - 3)) == 0
    assert np.abs(view.rays).max() < 0.6 and view.descriptors.dtype == np.uint8
    plain = view_of(np.full((240, 320, 3), 128, np.uint8), np.full((24, 32), np.nan, np.float32), k, None)
    assert len(plain) == 0 and plain.usual_depth == 1.0 and not plain.place.any()
    assert compare(plain, view).reason == "few descriptors match"
