"""TF over DDS in the three trees that robots have. tf2_msgs has no wheel: where it is missing, it is built for these tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros.live_node import START_NS, STEP_NS, Peer, picture, wait_until

from come_ros.geometry import matrix_from_quat_xyzw, transform
from come_ros.ros import messages

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ("-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2")
DEFINITION = "geometry_msgs/TransformStamped[] transforms"


def unavailable(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def tf_message(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The class TFMessage, and the folder to put on PYTHONPATH so that the node finds it too ("" if ROS has it)."""
    folder = ""
    if importlib.util.find_spec("tf2_msgs") is None:
        shared = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared")
        script = shared / "tools/ros/build_msg_pkg.py"
        if not script.is_file():
            unavailable(f"tf2_msgs is not installed, and {script} that would build it is missing")
        if shutil.which("g++") is None or importlib.util.find_spec("catkin_pkg") is None:
            unavailable("tf2_msgs is not installed; to build it, g++ and catkin_pkg are needed")
        folder = str(tmp_path_factory.mktemp("tf2_msgs"))
        done = subprocess.run(
            [sys.executable, str(script), folder, "tf2_msgs", "TFMessage", DEFINITION,
             "--deps", "geometry_msgs", "std_msgs", "builtin_interfaces"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        sys.path.insert(0, folder)
    from tf2_msgs.msg import TFMessage

    return TFMessage, folder


@pytest.fixture(autouse=True, scope="module")
def forget_tf2_msgs(tf_message):
    """What was built is gone for the tests that come after."""
    yield
    if tf_message[1]:
        sys.path.remove(tf_message[1])
        for name in [n for n in sys.modules if n.partition(".")[0] == "tf2_msgs"]:
            del sys.modules[name]


def matrix(t: Any) -> np.ndarray:
    """(4, 4) parent_from_child of a Transform message."""
    q = [t.rotation.x, t.rotation.y, t.rotation.z, t.rotation.w]
    return transform(matrix_from_quat_xyzw(q), [t.translation.x, t.translation.y, t.translation.z])


def run(start_node, peer: Peer, tf_message, *arguments: str, edge: tuple[str, str] | None = None, until) -> tuple:
    """Feeds frames until `until(transforms)`; the node, and (stamp, parent, child, matrix) of what it sent on /tf."""
    kind, folder = tf_message
    peer.listen_to_outputs()
    got = peer.listen("/tf", kind, 100)
    if edge:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        static = peer.node.create_publisher(kind, "/tf_static", latched)
        static.publish(kind(transforms=[messages.transform_message(np.eye(4), START_NS, *edge)]))
    node = start_node(*ARGUMENTS, *arguments, env={"PYTHONPATH": folder} if folder else {})
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    if edge:
        wait_until(static.get_subscription_count, what="the node to listen on /tf_static")
        time.sleep(0.3)

    def transforms() -> list[tuple]:
        return [
            (messages.stamp_ns(t.header.stamp), t.header.frame_id, t.child_frame_id, matrix(t.transform))
            for m in list(got)
            for t in m.transforms
        ]

    end = time.monotonic() + 10.0
    for i in range(200):
        peer.send(picture(i), START_NS + i * STEP_NS)
        time.sleep(0.1)
        if until(transforms(), peer):
            break
        assert time.monotonic() < end, f"{transforms()}\n{node.log}"
    time.sleep(0.3)
    return node, transforms()


def poses(peer: Peer) -> dict[int, np.ndarray]:
    return {
        messages.stamp_ns(m.header.stamp): messages.pose_of(m.pose.pose) for m in list(peer.received["/come/odometry"])
    }


def test_a_bare_camera_hangs_below_the_world(start_node, peer: Peer, tf_message) -> None:
    node, got = run(start_node, peer, tf_message, until=lambda tf, _: len(tf) >= 3)
    published = poses(peer)
    for stamp, parent, child, parent_from_child in got:
        assert (parent, child) == ("visual_odom", "cam_optical_frame")
        np.testing.assert_allclose(parent_from_child, published[stamp], atol=1e-12)
    assert len({stamp for stamp, *_ in got}) == len(got)
    # it listened for a second before it took the camera
    assert min(stamp for stamp, *_ in got) > min(published)
    assert "TF: forward" in node.log and peer.status("come: output")["tf_mode"] == "forward"


def test_the_world_hangs_below_a_camera_that_has_a_parent(start_node, peer: Peer, tf_message) -> None:
    edge = ("base_link", "cam_optical_frame")
    node, got = run(start_node, peer, tf_message, edge=edge, until=lambda tf, _: len(tf) >= 3)
    published = poses(peer)
    for stamp, parent, child, parent_from_child in got:
        assert (parent, child) == ("cam_optical_frame", "visual_odom")
        np.testing.assert_allclose(parent_from_child @ published[stamp], np.eye(4), atol=1e-9)
    assert "TF: inverse" in node.log


def test_no_second_parent_even_if_asked_for(start_node, peer: Peer, tf_message) -> None:
    node, got = run(
        start_node, peer, tf_message, "-p", "tf.mode:=forward", edge=("base_link", "cam_optical_frame"),
        until=lambda _, p: "TF conflict" in p.status("come: output").get("message", ""),
    )  # fmt: skip
    assert not got
    assert node.log.count("TF conflict") == 1 and peer.status("come: output")["level"] == "2"
    assert peer.received["/come/odometry"], "odometry goes on"
    assert node.stop(signal.SIGINT)[0] == 0
