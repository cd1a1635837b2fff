"""Where frames are: by chains of static and moving edges, at the time of an image."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from come_ros import geometry
from come_ros.camera.rig import parse_extrinsics
from come_ros.errors import ConfigError
from come_ros.ros.frame_tree import FrameTree

S = 1_000_000_000
T0 = 1_700_000_000 * S


def pose(rng: np.random.Generator) -> np.ndarray:
    return geometry.transform(geometry.rotation_from_vector(rng.normal(size=3)), rng.normal(size=3))


def test_a_lookup_goes_up_to_the_common_frame_and_down_again() -> None:
    rng = np.random.default_rng(0)
    base_from_arm, arm_from_cam, base_from_lidar, map_from_base = (pose(rng) for _ in range(4))
    tree = FrameTree()
    tree.observe("/base", "arm", T0, base_from_arm, static=True)
    tree.observe("arm", "/cam", T0, arm_from_cam, static=True)
    tree.observe("base", "lidar", T0, base_from_lidar, static=True)
    tree.observe("map", "base", T0, map_from_base, static=False)
    np.testing.assert_allclose(tree.lookup("base", "cam", T0 + 99 * S), base_from_arm @ arm_from_cam, atol=1e-12)
    np.testing.assert_allclose(tree.lookup("cam", "arm", T0), geometry.inverse(arm_from_cam), atol=1e-12)
    between = geometry.inverse(base_from_lidar) @ base_from_arm @ arm_from_cam
    np.testing.assert_allclose(tree.lookup("lidar", "cam", T0 + 99 * S), between, atol=1e-12)
    np.testing.assert_array_equal(tree.lookup("cam", "cam", T0), np.eye(4))
    assert tree.lookup("base", "nobody", T0) is None
    assert tree.lookup("map", "cam", T0 + 99 * S) is None, "where the robot was 99 s ago says nothing"


def test_a_camera_on_a_moving_joint_is_where_it_was_when_the_image_was_taken() -> None:
    tree = FrameTree()
    for tenth in range(11):
        turned = geometry.transform(geometry.rotation_from_vector([0, 0, 0.1 * tenth]), [0, 0, 1])
        tree.observe("base", "head", T0 + tenth * S // 10, turned, static=False)
    found = tree.lookup("base", "head", T0 + 55 * S // 100)
    assert geometry.rotation_angle(found[:3, :3]) == pytest.approx(0.55) and found[2, 3] == 1


def test_a_frame_that_is_told_later_is_waited_for() -> None:
    tree = FrameTree()
    begun = time.monotonic()
    assert tree.lookup("base", "cam", T0, wait_s=0.05) is None and time.monotonic() - begun >= 0.05
    later = threading.Timer(0.05, tree.observe, ("base", "cam", 0, np.eye(4), True))
    later.start()
    assert tree.lookup("base", "cam", T0, wait_s=10.0) is not None
    later.join()


def test_what_is_no_transform_and_loops_do_no_harm() -> None:
    tree = FrameTree()
    broken = np.eye(4)
    broken[0, 3] = np.nan
    tree.observe("base", "cam", T0, broken, static=True)
    tree.observe("cam", "cam", T0, np.eye(4), static=True)
    assert tree.lookup("base", "cam", T0) is None
    for parent, child in ("ab", "bc", "ca"):
        tree.observe(parent, child, T0, np.eye(4), static=True)
    assert tree.lookup("base", "a", T0) is None and tree.lookup("a", "c", T0) is not None


def test_extrinsics_are_read_by_frame_and_refused_in_words() -> None:
    found = parse_extrinsics("left: 0 0.1 0 0 0 0 1; /right: 0, -0.1, 0, 0, 0, 0, 2;")
    assert set(found) == {"left", "right"} and found["left"][1, 3] == 0.1
    np.testing.assert_array_equal(found["right"][:3, :3], np.eye(3))
    assert parse_extrinsics(" ") == {}
    for text in (
        "left",
        "left:",
        "left: 1 2 3",
        ": 0 0 0 0 0 0 1",
        "a: 0 0 0 0 0 0 0",
        "a: 0 0 0 0 0 0 1; a: 0 0 0 0 0 0 1",
    ):
        with pytest.raises(ConfigError, match=r"seven numbers|each must be"):
            parse_extrinsics(text)
