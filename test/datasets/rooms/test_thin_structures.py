"""Rooms with thin structures: the rooms themselves stay as they are, masks are exact, cameras keep away."""

import numpy as np
import pytest

from come_ros.datasets.rooms import camera, rooms, splits
from come_ros.datasets.rooms.scene import Scene, make_scene
from come_ros.datasets.rooms.thin_structures import KINDS, LEAST_AWAY_M, add_structures, render_thin, thin_windows


@pytest.mark.parametrize("kind", KINDS)
def test_structures_are_thin_in_front_and_nowhere_else(kind):
    seed = 10_000_003
    found = render_thin(seed, kind, 2, 112, 84)
    plain = rooms.render_sequence(seed, 2, 112, 84, rate_hz=splits.TEST_RATE_HZ)
    np.testing.assert_array_equal(found.background, plain.depth)
    np.testing.assert_array_equal(found.sequence.world_from_camera, plain.world_from_camera)
    assert found.kind == kind and (found.sequence.depth <= found.background + 1e-4).all()
    assert 0.001 < found.thin.mean() < 0.3
    assert (found.sequence.depth[~found.thin] == found.background[~found.thin]).all()
    assert found.sequence.depth.min() > 0.3


def test_equal_arguments_give_equal_windows_at_every_size():
    small, again, large = (render_thin(7, "fence", 1, w, w * 3 // 4) for w in (64, 64, 192))
    np.testing.assert_array_equal(small.sequence.images, again.sequence.images)
    np.testing.assert_allclose(large.sequence.depth[:, 1::3, 1::3], small.sequence.depth, rtol=1e-4)
    assert not np.array_equal(render_thin(7, "poles", 1, 64, 48).sequence.depth, small.sequence.depth)


def test_no_structure_comes_near_a_camera():
    for seed in range(4):
        scene = make_scene(seed)
        poses = camera.camera_path(scene, seed, 4)
        for kind in KINDS:
            furnished = add_structures(scene, poses, kind)
            assert len(furnished.records) > len(scene.records)
            np.testing.assert_array_equal(furnished.records[: len(scene.records)], scene.records)
            only = Scene(**{**vars(furnished), "shapes": furnished.shapes[len(scene.shapes) :],
                                      "records": furnished.records[len(scene.records) :], "room": np.full(3, 1e3)})  # fmt: skip
            centres = poses[:, :3, 3] + [0, 0, 0]
            assert only.clearance(centres)[centres[:, 2] > LEAST_AWAY_M].min() > 0.4  # a rod is at most 0.2 m thick


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="kind is 'ropes'; it must be one of poles"):
        render_thin(0, "ropes")
    with pytest.raises(ValueError, match="count is 0"):
        next(thin_windows(0))
    assert [w.kind for w in thin_windows(2, 1, 64, 48)] == ["poles", "wires"]
