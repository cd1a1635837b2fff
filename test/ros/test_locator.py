"""Odometry at the camera's rate in the live node: a pose of every image, in time, whatever the model does."""

from __future__ import annotations

import signal
import time

import cv2
import numpy as np
import pytest
from ros.live_node import HEIGHT, START_NS, STEP_NS, WIDTH, K, Peer, wait_until
from ros.test_node import EVERY, SLOW, assert_ends_well, settled, stamps

from come_ros.backbones.fake import FakeBackbone
from come_ros.config import Config
from come_ros.pipeline import ReconstructionPipeline
from come_ros.ros import messages
from come_ros.types import Frame

RATE = ("-p", "odometry.rate:=image")
RANDOM = np.random.default_rng(0)
WORLD = cv2.GaussianBlur(RANDOM.integers(0, 256, (HEIGHT, 3 * WIDTH, 3)).astype(np.uint8), (0, 0), 2.0)
WORLD = cv2.normalize(WORLD, None, 0, 255, cv2.NORM_MINMAX)


def view(i: int) -> np.ndarray:
    """(HEIGHT, WIDTH, 3): a camera that slides past a wall, 3 px an image."""
    return np.ascontiguousarray(WORLD[:, 3 * i : 3 * i + WIDTH])


def send(peer: Peer, count: int, pause_s: float, first: int = 0) -> list[int]:
    sent = [START_NS + i * STEP_NS for i in range(first, first + count)]
    for i, stamp in enumerate(sent, first):
        peer.send(view(i), stamp)
        time.sleep(pause_s)
    return sent


def started(start_node, peer: Peer, *arguments: str, **options):
    peer.listen_to_outputs()
    node = start_node(*EVERY, *RATE, *arguments, **options)
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    return node


def test_every_image_has_a_pose_though_the_model_is_slow(start_node, peer: Peer) -> None:
    node = started(start_node, peer, script=SLOW.format(delay=0.4))
    sent = send(peer, 4, 0.3)  # the first landmarks are there
    wait_until(lambda: peer.received["/come/odometry"], what="a pose")
    sent += send(peer, 40, 0.05, first=4)
    status = settled(peer, len(sent))
    assert int(status["dropped_busy"]) > 5, "the model cannot keep up"
    odometry = peer.received["/come/odometry"]
    wait_until(lambda: stamps(odometry)[-1:] == sent[-1:], what="the last pose")
    assert stamps(odometry) == sorted(set(stamps(odometry)))
    assert len(odometry) >= 0.9 * len(sent), "a loaded machine may lose some messages"
    depth = peer.received["/come/depth/image"]
    assert 0 < len(depth) == int(status["used"]) < len(odometry)
    values = peer.status("come: output")
    assert float(values["pose_hz"]) > 0 and int(values["pose_points"]) > 50
    assert float(values["pose_latency_ms"]) < 400, "no pose waits for the model"
    assert_ends_well(node, signal.SIGINT)


def test_with_backpressure_all_the_poses_are_those_of_the_bag_tool(start_node, peer: Peer) -> None:
    parameters = {"window.size": 4, "window.overlap": 2, "keyframe.mode": "time", "keyframe.min_interval": 0.2}
    words = [w for name, value in parameters.items() for w in ("-p", f"{name}:={value}")]
    node = started(
        start_node,
        peer,
        "-p",
        "backpressure:=all",
        "-p",
        "input.reliability:=reliable",
        "-p",
        "input.depth:=50",
        *words,
    )
    frames = [Frame(view(i), START_NS + i * STEP_NS, "cam_optical_frame", K) for i in range(20)]
    poses = []
    config = Config().replace(backbone="fake", backpressure="all", **parameters)
    for _ in ReconstructionPipeline(config, FakeBackbone()).run(iter(frames), located=poses.extend):
        pass
    for frame, i in zip(frames, range(20), strict=True):
        peer.send(view(i), frame.stamp_ns)
        time.sleep(0.05)
    odometry = peer.received["/come/odometry"]
    wait_until(lambda: len(odometry) >= len(poses) - 2, what="as many poses")
    wanted = {p.frame.stamp_ns: p.odom_from_camera for p in poses}
    assert len(odometry) > 10
    before_the_end = list(odometry)[:16]  # the bag tool makes a last window of what is left
    for message in before_the_end:
        stamp = messages.stamp_ns(message.header.stamp)
        np.testing.assert_array_equal(messages.pose_of(message.pose.pose)[:3, 3], wanted[stamp][:3, 3])
    assert_ends_well(node, signal.SIGINT)


def test_a_scene_that_is_gone_is_lost_and_told(start_node, peer: Peer) -> None:
    node = started(start_node, peer, "-p", "scale.mode:=fixed", script=SLOW.format(delay=1.5))
    send(peer, 6, 0.3)
    wait_until(lambda: peer.received["/come/odometry"], what="a pose")
    stamp = START_NS + 40 * STEP_NS
    peer.send(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), stamp)
    odometry = peer.received["/come/odometry"]
    wait_until(lambda: stamps(odometry)[-1:] == [stamp], what="the pose of a plain image")
    before, after = (np.diag(np.reshape(m.pose.covariance, (6, 6))) for m in list(odometry)[-2:])
    assert (after > before).all(), "nobody knows"
    wait_until(lambda: int(peer.status("come: output").get("pose_lost", 0)) > 0, what="the diagnostics")
    assert_ends_well(node, signal.SIGTERM)


@pytest.mark.parametrize("rate", ["often", ""])
def test_another_rate_is_refused(rate) -> None:
    with pytest.raises(Exception, match="image, keyframe"):
        Config().replace(**{"odometry.rate": rate})
