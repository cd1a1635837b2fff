"""In a saved map: found wherever a session starts, in whatever unit it has; not found where it is not; and what happens later."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from mapping import scenes
from mapping.scenes import Scene, along, drifting, submap_of, wall

from come_ros import geometry
from come_ros.datasets.rooms.returning import corridor_walk
from come_ros.mapping import mapper as module
from come_ros.mapping.follow import in_map
from come_ros.mapping.mapper import Mapper
from come_ros.mapping.saved_map import SavedMap
from come_ros.types import F64, Alignment, Frame, Observations, Refinement, Submap

TURNED = geometry.transform(geometry.rotation_from_vector([0.1, -0.2, 1.0]), [3.0, -1.0, 0.5])


def walked(
    mapper: Mapper, scene: Scene, real: F64, odometry: F64, monkeypatch: pytest.MonkeyPatch, unit: float = 1.0, start: int = 0,
    tracks: Any = None,
) -> Mapper:  # fmt: skip
    """`mapper` after more keyframes, whose views are those of the true poses. tracks: ids that each of them sees."""
    for i, (true, told) in enumerate(zip(real, odometry, strict=True)):
        monkeypatch.setattr(module, "view_of", lambda *_, true=true, i=i: scene.view(true, unit, seed=1000 * start + i))
        submap = submap_of(start + i, told, 2.0 * unit)
        mapper.add(
            submap if tracks is None else seeing(submap, tracks[i]), 0, lambda s, r: np.ones(s.depth[r].shape, bool)
        )
    return mapper


def seeing(submap: Submap, ids: Any) -> Submap:
    seen = Observations(np.asarray(ids, np.int64), np.zeros((len(ids), 2)))
    return dataclasses.replace(submap, frames=(dataclasses.replace(submap.frames[0], observations=seen),))


def of_another_session(real: F64, unit: float) -> F64:
    """Those poses in an odometry frame of their own, in its unit."""
    return geometry.transform_poses(unit, TURNED[:3, :3], TURNED[:3, 3], real)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return wall(12.0)


@pytest.fixture(scope="module")
def saved(scene: Scene) -> SavedMap:
    patch = pytest.MonkeyPatch()
    real = along(np.linspace(2, 10, 24))
    out = walked(Mapper(False, 1000), scene, real, real, patch).save("some model", np.nan, np.nan, 0.02)
    patch.undo()
    assert out is not None and len(out.keyframes) == 24
    return out


def off(mapper: Mapper, real: F64, odometry: F64, start: int = 0) -> float:
    """Largest error of the positions that the map gives, in units of the saved map."""
    stamps = np.arange(start, start + len(real), dtype=np.int64)
    placed = in_map(stamps, odometry, mapper.corrections)
    return float(np.linalg.norm(mapper.corrections.unit * placed[:, :3, 3] - real[:, :3, 3], axis=1).max())


@pytest.mark.parametrize("localize", [True, False])
@pytest.mark.parametrize(("start", "unit"), [(2.5, 1.0), (5.0, 2.5), (9.0, 0.4)])
def test_a_session_finds_itself_wherever_it_starts_in_any_unit(
    start: float, unit: float, localize: bool, scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = along(np.linspace(start, start + 1.0, 6), 0.05)
    odometry = of_another_session(real, unit)
    mapper = Mapper(False, 1000, saved=saved, localize=localize)
    assert (
        not mapper.located and not mapper.corrections.located and np.array_equal(mapper.corrections.latest(), np.eye(4))
    )
    walked(mapper, scene, real, odometry, monkeypatch, unit)
    assert mapper.located and mapper.corrections.located
    assert mapper.search.keyframes <= 3, "within the first views"
    np.testing.assert_allclose(mapper.corrections.unit * unit, 1.0, atol=0.03)
    assert off(mapper, real, odometry) < 0.06
    latest = mapper.corrections.latest()
    assert geometry.is_finite_pose(latest, 1e-9), "TF carries no scale"
    np.testing.assert_allclose(
        latest @ odometry[-1], in_map(np.array([5]), odometry[-1:], mapper.corrections)[0], atol=1e-9
    )
    again = walked(Mapper(False, 1000, saved=saved, localize=localize), scene, real, odometry, monkeypatch, unit)
    assert np.array_equal(again.nodes.translation, mapper.nodes.translation), "the same bits"
    mapper.reset()
    assert not mapper.located and len(mapper.keyframes) == 24, "~/reset begins in the saved map again"


def test_with_metres_on_both_sides_the_session_keeps_its_scale(
    scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = along(np.linspace(4, 5, 6))
    mapper = walked(Mapper(True, 1000, saved=saved), scene, real, of_another_session(real, 1.0), monkeypatch)
    assert mapper.located and not mapper.nodes.log_scale.any() and mapper.corrections.unit == 1.0


def test_another_place_is_not_found_and_says_why(saved: SavedMap, monkeypatch: pytest.MonkeyPatch) -> None:
    real = along(np.linspace(2, 10, 12))
    mapper = walked(Mapper(False, 1000, saved=saved, localize=True), wall(12.0, seed=7), real, real, monkeypatch)
    assert not mapper.located and mapper.search.compared > 30 and mapper.corrections.version == 0
    assert max(mapper.search.refused, key=mapper.search.refused.get) == "few descriptors match"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_among_doors_that_are_all_alike_nothing_is_sure(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    doors = wall(16.0, period=2.0, seed=seed)
    real = along(np.linspace(2, 14, 24))
    saved = walked(Mapper(True, 1000), doors, real, real, monkeypatch).save("", np.nan, np.nan, np.nan)
    somewhere = along(np.linspace(6.3, 8.3, 6))
    mapper = walked(Mapper(True, 1000, saved=saved, localize=True), doors, somewhere, somewhere, monkeypatch)
    assert mapper.search.seen > 5, "it looks like several places"
    assert not mapper.located


def test_another_camera_may_find_itself(scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are kept as rays: a focal length half as long again changes what is seen, not where it lies."""
    monkeypatch.setattr(scenes, "FOCAL", 450.0)
    real = along(np.linspace(5, 6, 6))
    odometry = of_another_session(real, 1.0)
    mapper = walked(Mapper(False, 1000, saved=saved, localize=True), scene, real, odometry, monkeypatch)
    assert mapper.located and off(mapper, real, odometry) < 0.1


@pytest.mark.slow
def test_localize_leaves_the_map_as_it_is_and_build_lets_it_grow(
    scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = along(np.concatenate([np.linspace(8, 10, 8), np.linspace(10, 12, 9)[1:]]))
    odometry = drifting(of_another_session(real, 1.0), 1, way=0.002)
    still, grows = (Mapper(False, 1000, saved=saved, localize=localize) for localize in (True, False))
    before = saved.nodes.translation.copy()
    for mapper in (still, grows):
        walked(mapper, scene, real, odometry, monkeypatch)
        assert mapper.located and len(mapper.keyframes) == 24 + len(real)
    # up to the unit, which is that of the session
    np.testing.assert_allclose(still.corrections.unit * still.nodes.translation[:24], before, atol=1e-9)
    assert np.array_equal(saved.nodes.translation, before), "a saved map is a value"
    grown = grows.save("some model", np.nan, np.nan, 0.02)
    assert grown is not None and len(grown.keyframes) == 24 + len(real) and grown.sessions == 2
    beyond = along(np.linspace(11, 11.6, 4))
    third = walked(
        Mapper(False, 1000, saved=grown, localize=True), scene, beyond, of_another_session(beyond, 1.0), monkeypatch
    )
    assert third.located and len(third.corrections.earlier) == 2, "where only the second session was"
    alone = walked(Mapper(False, 1000, saved=saved, localize=True), scene, beyond, beyond, monkeypatch)
    assert not alone.located


@pytest.mark.slow
def test_a_grown_map_is_bounded_and_a_map_to_localize_in_keeps_all(
    scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = along(np.linspace(4, 9, 20))
    for localize in (True, False):
        mapper = walked(Mapper(False, 16, saved=saved, localize=localize), scene, real, real, monkeypatch)
        assert mapper.located and mapper.known == (24 if localize else mapper.known) and mapper.first == mapper.known
        assert len(mapper.keyframes) <= 16 + (24 if localize else 0) and len(mapper.nodes) == len(mapper.keyframes)
        assert max(mapper.closed.first.max(initial=0), mapper.closed.second.max(initial=0)) < len(mapper.keyframes)
        assert off(mapper, real, real) < 0.15
        assert [k.session for k in mapper.keyframes] == sorted(k.session for k in mapper.keyframes)


@pytest.mark.parametrize("localize", [True, False])
def test_kidnapped_within_the_map_it_finds_itself_again(
    localize: bool, scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No track leads across the leap, and odometry goes on as if there had been none."""
    first, second = along(np.linspace(3, 4, 6)), along(np.linspace(8, 9, 6))
    step = geometry.inverse(first[-2]) @ first[-1]
    odometry = [*of_another_session(first, 1.0)]
    bridge = odometry[-1] @ step @ geometry.inverse(second[0])
    odometry = np.stack([*odometry, *(bridge @ second)])
    tracks = [np.arange(40)] * 6 + [np.arange(100, 140)] * 6
    real = np.concatenate([first, second])
    mapper = Mapper(False, 1000, saved=saved, localize=localize)
    walked(mapper, scene, real, odometry, monkeypatch, tracks=tracks)
    assert mapper.located
    placed = mapper.corrections.latest() @ odometry[-1]
    assert np.linalg.norm(placed[:3, 3] - real[-1, :3, 3]) < 0.15, "it is where it was carried to"
    early = in_map(np.arange(3), odometry[:3], mapper.corrections)
    assert np.linalg.norm(early[:, :3, 3] - real[:3, :3, 3], axis=1).max() < 0.15, "and was where it was"


def test_kidnapped_to_an_unknown_place_the_map_waits_until_it_is_back(
    scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, elsewhere, back = along(np.linspace(3, 4, 6)), along(np.linspace(2, 4, 8)), along(np.linspace(6, 7, 6))
    mapper = Mapper(False, 1000, saved=saved, localize=True)
    walked(mapper, scene, first, first, monkeypatch, tracks=[np.arange(40)] * 6)
    version, offered = mapper.corrections.version, mapper.counts.offered
    odometry = first[-1] @ geometry.inverse(elsewhere[0]) @ elsewhere
    walked(mapper, wall(12.0, seed=7), elsewhere, odometry, monkeypatch, start=6, tracks=[np.arange(100, 140)] * 8)
    assert mapper.corrections.version == version and mapper.counts.offered > offered, (
        "nothing there is taken for the map"
    )
    odometry = odometry[-1] @ geometry.inverse(back[0]) @ back
    walked(mapper, scene, back, odometry, monkeypatch, start=14, tracks=[np.arange(200, 240)] * 6)
    placed = mapper.corrections.latest() @ odometry[-1]
    assert mapper.corrections.version > version
    assert np.linalg.norm(placed[:3, 3] - back[-1, :3, 3]) < 0.15


def test_stamps_that_go_back_begin_a_session_and_the_map_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """on_time_jump is keep_pose: a bag that is played in a loop, whose odometry continues."""
    real = along(np.concatenate([np.linspace(3, 6, 10), np.linspace(6, 3, 10)]))
    mapper = walked(Mapper(True, 1000), scene, real[:10], real[:10], monkeypatch)
    walked(mapper, scene, real[10:], real[10:], monkeypatch)  # the same stamps once more
    assert mapper.session == 1 and len(mapper.corrections.earlier) == 1 and mapper.counts.offered > 0
    for session, part in ((0, real[:10]), (1, real[10:])):
        placed = in_map(np.arange(10), part, mapper.corrections.of(session))
        np.testing.assert_allclose(placed, part, atol=0.05)
    again = mapper.save("", np.nan, np.nan, np.nan)
    assert again is not None and again.sessions == 2
    assert [k.key for k in again.keyframes] == sorted(k.key for k in again.keyframes)


def test_keyframes_that_are_passed_by_are_not_forgotten(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the map's thread does not keep up, steps are longer, but a leap between them is still one."""
    real = along(np.array([3.0, 3.3, 3.6]))
    roots = []
    for ids in (np.arange(40), np.arange(100, 140)):
        mapper = walked(Mapper(True, 1000), scene, real[:1], real[:1], monkeypatch, tracks=[np.arange(40)])
        mapper.pass_by(seeing(submap_of(1, real[1]), ids), 0)
        walked(mapper, scene, real[2:], real[2:], monkeypatch, start=2, tracks=[ids])
        roots.append(1 / mapper.chain.root[0, 3, 3])
    assert len(mapper._since) == 0 and roots[1] > 10 * roots[0]


@pytest.mark.parametrize("localize", [True, False])
def test_a_turn_that_odometry_got_wrong_is_put_right_by_the_map(
    localize: bool, scene: Scene, saved: SavedMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight degrees in one step, which tracks seem to hold: far more than drift, but not enough to be another place."""
    real = along(np.linspace(4, 6, 10))
    wrong = geometry.transform(geometry.rotation_from_vector([0, np.deg2rad(8.0), 0]), np.zeros(3))
    odometry = np.concatenate([real[:5], real[4] @ wrong @ geometry.inverse(real[4]) @ real[5:]])
    mapper = Mapper(True, 1000, saved=saved, localize=localize)
    walked(mapper, scene, real, odometry, monkeypatch, tracks=[np.arange(100)] * 10)
    placed = mapper.corrections.latest() @ odometry[-1]
    assert np.linalg.norm(odometry[-1, :3, 3] - real[-1, :3, 3]) > 0.1
    assert np.linalg.norm(placed[:3, 3] - real[-1, :3, 3]) < 0.08
    assert geometry.rotation_angle(placed[:3, :3].T @ real[-1, :3, :3]) < np.deg2rad(2.0)


@pytest.mark.slow
def test_a_recording_of_equal_doors_offers_wrong_loops_and_wrong_places_and_all_are_refused() -> None:
    """Rendered images: each door fits several others, by descriptors and by geometry."""
    walk = corridor_walk(5, 30, 5)

    def seen(mapper: Mapper, rows: range) -> Mapper:
        poses = drifting(walk.world_from_camera[rows.start : rows.stop], 1)
        for i, pose in zip(rows, poses, strict=True):
            submap = Submap(
                (Frame(walk.images[i], int(walk.stamps_ns[i]), intrinsics=walk.intrinsics),), walk.images[i : i + 1],
                walk.depth[i : i + 1], np.ones_like(walk.depth[i : i + 1]), walk.intrinsics[None], pose[None],
                Alignment(True, 4, 1.0), refinement=Refinement(refined=1.0),
            )  # fmt: skip
            mapper.add(submap, 0, lambda s, r: np.isfinite(s.depth[r]))
        return mapper

    whole = seen(Mapper(True, 1000), range(30))
    assert whole.counts.refused["another place that looks the same"] > 10 and whole.counts.accepted == 0
    saved = whole.save("", np.nan, np.nan, np.nan)
    inside = seen(Mapper(True, 1000, saved=saved, localize=True), range(13, 18))
    assert inside.search.seen > 5 and not inside.located
