"""The scene of a running node: points where nothing was before, moved by loops, bounded, and forgotten with the world."""

from __future__ import annotations

import made_results as made
import numpy as np
import pytest

from come_ros import geometry
from come_ros.results import ResultFrame
from come_ros.view.live import LiveScene

SHIFT = geometry.transform(np.eye(3), [0.0, 0.0, 0.5])


def frame(i: int) -> ResultFrame:
    return ResultFrame(
        made.stamps(50)[i], made.picture(i % 12), made.depth(i % 12), made.confidence(i % 12), made.K, made.pose(i % 12)
    )


def fed(scene: LiveScene, count: int = 6, start: int = 0) -> LiveScene:
    for i in range(start, start + count):
        scene.add_pose(made.stamps(50)[i], made.pose(i % 12))
        scene.add_frame(frame(i))
    return scene


def test_each_frame_adds_what_was_not_seen_before() -> None:
    scene = fed(LiveScene("/come"))
    batches, gone = scene.batches()
    assert 1 < len(batches) <= 6 and not gone and batches[0].time_s == 0
    for batch in batches:
        np.testing.assert_allclose(batch.cloud.places[:, 2], made.WALL_Z, rtol=1e-4)
    assert len(batches[0].cloud) > len(batches[1].cloud)
    scene.add_frame(frame(5))  # the camera stands still
    assert scene.batches() == ([], ()) and scene.frames == 7
    content = scene.content()
    assert content.facts.startswith("live: 7 frames with depth") and len(content.keyframes) == 7
    assert content.odometry is not None and len(content.odometry.places) == 6 and content.path is None


def test_a_loop_moves_points_and_cameras() -> None:
    scene = fed(LiveScene("/come"))
    before, _ = scene.batches()
    scene.add_path({stamp: SHIFT @ made.pose(i) for i, stamp in enumerate(made.stamps(6))})
    after, gone = scene.batches()
    assert [b.name for b in after] == [b.name for b in before] and not gone
    for batch in after:
        np.testing.assert_allclose(batch.cloud.places[:, 2], made.WALL_Z + 0.5, rtol=1e-4)
    content = scene.content()
    for i, shown in enumerate(content.keyframes):
        np.testing.assert_allclose(shown.pose, SHIFT @ made.pose(i), atol=1e-9)
    assert content.path is not None and scene.content().keyframes[0] is content.keyframes[0]  # nothing is sent again
    fed(scene, 1, 6)  # not in the path yet: it has the newest correction
    np.testing.assert_allclose(scene.batches()[0][-1].cloud.places[:, 2], made.WALL_Z + 0.5, rtol=1e-4)


def test_where_the_map_has_another_unit_points_stay_in_the_odometry_frame() -> None:
    scene = fed(LiveScene("/come"))
    scene.batches()
    scene.facts = {"odom_unit": "model", "map_unit": "metre"}
    scene.add_path({stamp: SHIFT @ made.pose(i) for i, stamp in enumerate(made.stamps(6))})
    assert scene.batches() == ([], ())


def test_the_oldest_points_and_every_other_camera_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("come_ros.view.live.MOST_CAMERAS", 6)
    scene = fed(LiveScene("/come", most_points=1000), 12)
    batches, gone = scene.batches()
    assert gone and not {b.name for b in batches} & set(gone)
    assert sum(len(b.cloud) for b in batches) <= 1000
    stamps = [shown.stamp_ns for shown in scene.content().keyframes]
    assert len(stamps) <= 6 and stamps == sorted(stamps) and stamps[-1] == made.stamps(50)[11]


def test_a_new_world_begins_empty() -> None:
    scene = fed(LiveScene("/come"), 6, 20)
    names = {b.name for b in scene.batches()[0]}
    fed(scene, 3)  # stamps jump back
    batches, gone = scene.batches()
    assert set(gone) == names and scene.worlds == 1 and scene.frames == 3
    assert batches and not {b.name for b in batches} & names
