"""TF over DDS in the three trees that robots have. tf2_msgs has no wheel: where it is missing, it is built for these tests."""

from __future__ import annotations

import importlib.util
import itertools
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
from ros.live_node import PATIENCE_S, START_NS, STEP_NS, Peer, picture, wait_until
from ros.test_policy import TF, granted, seen

from come_ros.geometry import BODY_FROM_OPTICAL, matrix_from_quat_xyzw, rotation_from_vector, transform
from come_ros.ros import messages

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = (
    "-p",
    "backbone:=fake",
    "-p",
    "keyframe.mode:=every",
    "-p",
    "diagnostics.period:=0.2",
    "-p",
    "loop.enabled:=true",
)
DEFINITION = "geometry_msgs/TransformStamped[] transforms"


def unavailable(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def tf_message_class(folder: Path) -> tuple[Any, str]:
    """The class TFMessage, and the folder to put on PYTHONPATH so that the node finds it too ("" if ROS has it, else `folder`)."""
    if importlib.util.find_spec("tf2_msgs") is not None:
        from tf2_msgs.msg import TFMessage

        return TFMessage, ""
    shared = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared")
    script = shared / "tools/ros/build_msg_pkg.py"
    if not script.is_file():
        unavailable(f"tf2_msgs is not installed, and {script} that would build it is missing")
    if shutil.which("g++") is None or importlib.util.find_spec("catkin_pkg") is None:
        unavailable("tf2_msgs is not installed; to build it, g++ and catkin_pkg are needed")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "tf2_msgs", "TFMessage", DEFINITION,
         "--deps", "geometry_msgs", "std_msgs", "builtin_interfaces"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    sys.path.insert(0, str(folder))
    from tf2_msgs.msg import TFMessage

    return TFMessage, str(folder)


@pytest.fixture(scope="module")
def tf_message(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    return tf_message_class(tmp_path_factory.mktemp("tf2_msgs"))


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


Edges = dict[tuple[str, str], np.ndarray]  # (parent, child) -> parent_from_child


def run(
    start_node, peer: Peer, tf_message, *arguments: str, edge: Edges | None = None, odometry: Edges | None = None, until
) -> tuple:
    """Feeds frames until `until(transforms)`; the node, and (stamp, parent, child, matrix) of odometry's edge that it sent on /tf.

    edge: what others publish on /tf_static; odometry: what they publish on /tf, with every frame.
    """
    kind, folder = tf_message
    peer.listen_to_outputs()
    got = peer.listen("/tf", kind, 100)
    others = peer.node.create_publisher(kind, "/tf", 100)

    def made(edges: Edges, stamp_ns: int) -> Any:
        return kind(transforms=[messages.transform_message(where, stamp_ns, *names) for names, where in edges.items()])

    if edge:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        static = peer.node.create_publisher(kind, "/tf_static", latched)
        static.publish(made(edge, START_NS))
    node = start_node(*ARGUMENTS, *arguments, env={"PYTHONPATH": folder} if folder else {})
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    if edge:
        wait_until(static.get_subscription_count, what="the node to listen on /tf_static")
        time.sleep(0.3)
    if odometry:
        wait_until(lambda: others.get_subscription_count() > 1, what="the node to listen on /tf")

    def transforms() -> list[tuple]:
        return [
            (messages.stamp_ns(t.header.stamp), t.header.frame_id, t.child_frame_id, matrix(t.transform))
            for m in list(got)
            for t in m.transforms
            if (t.header.frame_id, t.child_frame_id) not in (odometry or {})
        ]

    end = time.monotonic() + PATIENCE_S
    for i in itertools.count():
        if odometry:
            others.publish(made(odometry, START_NS + i * STEP_NS))
        peer.send(picture(i), START_NS + i * STEP_NS)
        time.sleep(0.1)
        if until(transforms(), peer):
            break
        assert time.monotonic() < end, f"{transforms()}\n{node.log}"
    time.sleep(0.3)
    parents: dict[str, set[str]] = {}
    for parent, child in [*((p, c) for _, p, c, _ in transforms()), *(edge or {}), *(odometry or {})]:
        parents.setdefault(child, set()).add(parent)
    assert all(len(found) == 1 for found in parents.values()), f"a second parent: {parents}"
    found = [t for t in transforms() if "visual_map" not in t[1:3]]
    of_map = [t for t in transforms() if "visual_map" in t[1:3]]
    below = any(child == "visual_odom" for _, _, child, _ in found)  # what has a parent gets the map as a leaf
    assert {t[1:3] for t in of_map} <= {("visual_odom", "visual_map") if below else ("visual_map", "visual_odom")}
    assert {t[0] for t in of_map} == {t[0] for t in found}, "the map's edge comes with each one of odometry"
    assert all(np.array_equal(t[3], np.eye(4)) for t in of_map), "no loop, no correction"
    wait_until(lambda: {stamp for stamp, *_ in found} <= poses(peer).keys(), what="odometry of the same frames")
    return node, found


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
    allowed, used = granted(), seen(peer, "come")  # the rest of them: test_policy.py
    assert allowed["subscribe"] >= used["subscribe"].keys() > TF
    assert allowed["publish"] >= used["publish"].keys() and "/tf" in used["publish"]


def assert_the_world_hangs_below(frame: str, got: list[tuple], peer: Peer) -> None:
    """Each transform of `got` is the inverse of the pose that odometry tells."""
    published = poses(peer)
    for stamp, parent, child, parent_from_child in got:
        assert (parent, child) == (frame, "visual_odom")
        np.testing.assert_allclose(parent_from_child @ published[stamp], np.eye(4), atol=1e-9)


def test_the_world_hangs_below_a_camera_that_has_a_parent(start_node, peer: Peer, tf_message) -> None:
    edge = {("base_link", "cam_optical_frame"): np.eye(4)}
    node, got = run(start_node, peer, tf_message, edge=edge, until=lambda tf, _: len(tf) >= 3)
    assert_the_world_hangs_below("cam_optical_frame", got, peer)
    assert "TF: inverse" in node.log


def test_no_second_parent_even_if_asked_for(start_node, peer: Peer, tf_message) -> None:
    node, got = run(
        start_node, peer, tf_message, "-p", "tf.mode:=forward", edge={("base_link", "cam_optical_frame"): np.eye(4)},
        until=lambda _, p: "TF conflict" in p.status("come: output").get("message", ""),
    )  # fmt: skip
    assert not got
    assert node.log.count("TF conflict") == 1 and peer.status("come: output")["level"] == "2"
    assert peer.received["/come/odometry"], "odometry goes on"
    assert node.stop(signal.SIGINT)[0] == 0


# a camera on a mast that looks down by 0.3 rad, in two steps, as a URDF has it
MAST = transform(rotation_from_vector([0, 0.3, 0]), [0.2, 0.05, 0.6])
URDF = {("base_link", "camera_link"): MAST, ("camera_link", "cam_optical_frame"): BODY_FROM_OPTICAL}
WHEELS = {("map", "odom"): np.eye(4), ("odom", "base_link"): transform(np.eye(3), [3.0, 1.0, 0.0])}


def test_a_camera_on_a_robot_moves_the_robot(start_node, peer: Peer, tf_message) -> None:
    """Forward to the root of the URDF; the world begins at the robot, level, by REP 103."""
    node, got = run(
        start_node, peer, tf_message, "-p", "base_frame:=base_link", edge=URDF, until=lambda tf, _: len(tf) >= 3
    )
    published = poses(peer)
    first = min(published)
    np.testing.assert_allclose(published[first], np.eye(4), atol=1e-9)
    for stamp, parent, child, parent_from_child in got:
        assert (parent, child) == ("visual_odom", "base_link")
        np.testing.assert_allclose(parent_from_child, published[stamp], atol=1e-12)
        # the stand-in's camera slides along its own x, which is the robot's right: -y
        x, y, z = parent_from_child[:3, 3]
        assert y < 0 and abs(x) < 1e-6 and abs(z) < 1e-6, parent_from_child
    assert {m.child_frame_id for m in peer.received["/come/odometry"]} == {"base_link"}
    assert "TF: forward" in node.log and peer.status("come: input")["base_frame"] == "ok"


def test_next_to_another_odometry_our_world_is_a_leaf(start_node, peer: Peer, tf_message) -> None:
    node, got = run(start_node, peer, tf_message, "-p", "base_frame:=base_link", edge=URDF, odometry=WHEELS,
                    until=lambda tf, _: len(tf) >= 3)  # fmt: skip
    assert_the_world_hangs_below("base_link", got, peer)
    assert "TF: inverse" in node.log


def test_a_robot_without_the_camera_gets_odometry_of_the_camera_and_no_tf(start_node, peer: Peer, tf_message) -> None:
    node, got = run(
        start_node, peer, tf_message, "-p", "base_frame:=base_link", edge={("base_link", "lidar"): np.eye(4)},
        until=lambda _, p: len(p.received["/come/odometry"]) > 3 and "base_link" in p.status("come: input").get("message", ""),
    )  # fmt: skip
    assert not got and {m.child_frame_id for m in peer.received["/come/odometry"]} == {"cam_optical_frame"}
    status = peer.status("come: input")
    assert status["level"] == "1" and "no transform from base_link to cam_optical_frame" in status["message"]
    assert node.log.count("no transform from base_link to cam_optical_frame") == 1, "said once"
