"""Streams that misbehave, through the live node: what is said, and that every frame ends in one place."""

from __future__ import annotations

import signal
import time

import numpy as np
from ros.live_node import HEIGHT, START_NS, STEP_NS, WIDTH, K, Peer, picture, wait_until
from ros.test_node import assert_ends_well, settled, stamps, started
from sensor_msgs.msg import CompressedImage, Image

from come_ros.camera.preprocess import crop_intrinsics, plan_resize, preprocess
from come_ros.camera.rectify import Lens, Rectifier
from come_ros.ros import messages

BENT = (-0.25, 0.06, 0.001, -0.001, 0.0)


def test_distorted_images_come_out_straight_with_the_intrinsics_to_match(start_node, peer: Peer) -> None:
    rgb = peer.listen("/come/rgb/image_rect", Image)
    peer.listen_to_outputs()
    node = start_node("-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2")
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    head = messages.header(START_NS, "cam_optical_frame")
    peer.camera_info.publish(messages.camera_info_message(K, WIDTH, HEIGHT, head, BENT))
    peer.image.publish(messages.image_message(picture(0), head))
    status = settled(peer, 1)
    assert (status["used"], status["camera_info"]) == ("1", "ok")
    assert (
        status["converters"].startswith("images by ") and node.log.count("messages are converted here: images by") == 1
    )
    wait_until(lambda: rgb and peer.received["/come/depth/camera_info"])
    lens = Rectifier(Lens(WIDTH, HEIGHT, K[0, 0], K[1, 1], K[0, 2], K[1, 2], "plumb_bob", BENT))
    plan = plan_resize(WIDTH, HEIGHT, 224, 14)
    (info,), (image,) = peer.received["/come/depth/camera_info"], rgb
    np.testing.assert_allclose(np.array(info.k).reshape(3, 3), crop_intrinsics(lens.intrinsics, plan))
    assert not any(info.d)
    np.testing.assert_array_equal(messages.decode_image(image), preprocess(lens.image(picture(0)), plan))
    assert_ends_well(node, signal.SIGINT)


def test_every_fault_of_a_stream_is_said_and_counted(start_node, peer: Peer) -> None:
    node = started(start_node, peer, "-p", "window.size:=4", "-p", "window.overlap:=2", "-p", "on_time_jump:=keep_pose")
    sent = 0

    def send(message: Image) -> None:
        nonlocal sent
        peer.image.publish(message)
        sent += 1
        settled(peer, sent)

    def good(i: int, stamp: int, frame: str = "cam", width: int = WIDTH, encoding: str = "rgb8") -> None:
        image = picture(i, width)
        image = image if encoding == "rgb8" else np.ascontiguousarray(image[..., 0])
        send(messages.ROS.image(image, messages.header(stamp, frame), encoding))

    stamp = START_NS
    for i in range(3):
        good(i, stamp := stamp + STEP_NS)
    good(3, stamp := stamp + STEP_NS, width=280)
    good(4, stamp := stamp + STEP_NS, width=280, encoding="mono8")
    good(5, stamp := stamp + STEP_NS, "/other")
    good(6, stamp := stamp + STEP_NS + 6_000_000_000, "/other")
    for i in (7, 8, 9):  # the third one confirms the jump, the other two are dropped as time
        good(i, stamp - 10**10 + (i - 7) * STEP_NS, "/other")
    stamp += 2 * STEP_NS
    used = 8
    assert settled(peer, sent)["used"] == str(used), node.log
    for told in (
        "images change from 320x240 px rgb8 of cam to 280x240 px rgb8 of cam: a new window continues from the last pose",
        "to 280x240 px mono8 of cam:",
        "to 320x240 px rgb8 of other:",
        "no image for 6.1 s by the stamps, but pauses should be of 5 s at most",
        "stamps go back by 10.000 s, but may by 0.1 s at most: a new window continues from the last pose (on_time_jump is keep_pose)",
    ):
        assert node.log.count(told) == 1, f"{told}\n{node.log}"

    good(8, stamp - 10**10, "/other")  # the stamp of the one before
    good(9, stamp - 10**10 - 50_000_000, "/other")  # a little late
    head = messages.header(stamp, "cam")
    whole = messages.image_message(picture(0), head)
    bad = (
        (
            Image(header=head, height=0, width=4, encoding="rgb8", step=12),
            "4x0 px is empty: its sides must be 1 px or more",
        ),
        (Image(header=head, height=240, width=320, encoding="rgb8", step=960, data=whole.data[:-1]), "is cut off"),
        (
            Image(header=head, height=2, width=2, encoding="plaid", step=2, data=b"1234"),
            "'plaid' cannot be read: it must be one",
        ),
        (messages.ROS.image(picture(0)[:4], head), "320x4 px cannot be used: its sides must be 16 px or more"),
    )
    for message, told in bad:
        send(message)
        wait_until(lambda told=told: told in peer.status("come: input")["message"], what=told)
    status = settled(peer, sent)
    assert (status["received"], status["used"], status["dropped_time"], status["dropped_decode"]) == (
        "16",
        "8",
        "4",
        "4",
    )
    assert node.log.count("frame dropped: /image: a rgb8 image of 4x0 px") == 1

    start = time.time_ns()
    good(10, 0, "")
    wait_until(lambda: len(peer.received["/come/odometry"]) == used + 1)
    last = peer.received["/come/odometry"][-1]
    assert start <= stamps([last])[0] <= time.time_ns(), "a zero stamp becomes the time of arrival"
    assert last.child_frame_id == "camera_optical_frame"
    assert node.log.count("zero stamp") == node.log.count("without a frame_id") == 1
    assert_ends_well(node, signal.SIGTERM)


def test_damaged_compressed_images_are_dropped(start_node, peer: Peer) -> None:
    import cv2

    node = started(start_node, peer, "-p", "image_transport:=compressed")
    jpeg = bytes(cv2.imencode(".jpg", picture(0))[1])
    for i, (kind, data) in enumerate(
        (("jpeg", jpeg[: len(jpeg) // 2]), ("jpeg", b""), ("16UC1; compressedDepth", jpeg), ("jpeg", jpeg))
    ):
        peer.compressed.publish(
            CompressedImage(header=messages.header(START_NS + i * STEP_NS, "cam"), format=kind, data=data)
        )
        settled(peer, i + 1)
    status = settled(peer, 4)
    assert (status["used"], status["dropped_decode"]) == ("1", "3")
    assert "must be a whole jpeg or png" in node.log
    assert_ends_well(node, signal.SIGINT)
