"""What is said of a frame, without ROS."""

import dataclasses

import numpy as np

from come_ros.config import Config
from come_ros.datasets.bag_writer import rosbags_messages
from come_ros.outputs.topics import FrameMessages
from come_ros.types import Alignment, Frame, Landmarks, Submap


def submap(merged):
    image = np.full((2, 4, 6, 3), 90, np.uint8)
    return Submap(
        frames=tuple(Frame(image[0], i + 1) for i in range(2)), images=image, depth=np.ones((2, 4, 6), np.float32),
        confidence=np.full((2, 4, 6), 2, np.float32), intrinsics=np.tile(np.eye(3), (2, 1, 1)),
        odom_from_camera=np.tile(np.eye(4), (2, 1, 1)), alignment=Alignment(True, 0, 1.0), merged=merged,
    )  # fmt: skip


def overlay(merged, row):
    from rosbags.typesys import Stores, get_typestore

    made = FrameMessages(rosbags_messages(get_typestore(Stores.ROS2_JAZZY)), submap(merged), row, None, Config())
    message = made.merge_overlay()
    assert (message.width, message.height, message.encoding) == (6, 4, "rgb8")
    return message.data.reshape(4, 6, 3)


def test_the_overlay_darkens_just_what_was_merged():
    merged = np.zeros((2, 4, 6), bool)
    merged[1, :2, :3] = True
    assert (overlay(merged, 0) == 90).all()
    got = overlay(merged, 1)
    assert (got[:2, :3] == 30).all() and (got[2:] == 90).all() and (got[:, 3:] == 90).all()


def test_without_merging_the_overlay_is_the_image():
    assert (overlay(None, 1) == 90).all()


def test_landmarks_are_those_whose_distance_is_known_in_the_odometry_frame():
    from rosbags.typesys import Stores, get_typestore

    messages = rosbags_messages(get_typestore(Stores.ROS2_JAZZY))
    places = np.arange(9.0).reshape(3, 3)
    known = Landmarks(
        np.arange(3), places, np.zeros((3, 3)), np.array([0.01, 0.2, 0.05]), (1, 2), np.tile(np.eye(4), (2, 1, 1)), "", np.eye(3),
        np.zeros((6, 6)),
    )  # fmt: skip
    for landmarks, expected in ((known, [[0, 1, 2, 0.01], [6, 7, 8, 0.05]]), (None, [])):
        made = FrameMessages(messages, dataclasses.replace(submap(None), landmarks=landmarks), 1, None, Config())
        message = made.landmarks()
        assert message.header.frame_id == Config().odom_frame and message.header.stamp.nanosec == 2
        assert [field.name for field in message.fields] == ["x", "y", "z", "sigma"]
        rows = np.frombuffer(message.data.tobytes(), "<f4").reshape(-1, 4)
        assert message.width == len(expected)
        np.testing.assert_allclose(rows, np.reshape(expected, (-1, 4)), rtol=1e-6)
