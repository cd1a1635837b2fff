"""What the node publishes beyond points, odometry and depth: pictures that fit the depth pixel by pixel, and what it keeps."""

from __future__ import annotations

import time

import numpy as np
from nav_msgs.msg import Path
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros.live_node import HEIGHT, START_NS, STEP_NS, WIDTH, K, NodeProcess, Peer, picture, wait_until
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Float64

from come_ros.camera.preprocess import crop_intrinsics, plan_resize, preprocess
from come_ros.messages import stamp_ns
from come_ros.outputs.topics import LATCHED, OUTPUTS
from come_ros.ros.messages import message_type, points_of

# what the stand-in says, and nothing of tracks: depth is then the brightness of a pixel
NODE = ("-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2", "-p", "tf.mode:=off")
NODE = (*NODE, "-p", "refine.mode:=none")
LATCHING = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

COUNTING = """
import sys
from come_ros.outputs import cloud, topics
from come_ros.ros import messages, node

def told(name, function):
    def build(*arguments):
        node.log.info("built: %s", name)
        return function(*arguments)
    return build

for topic, output in topics.OUTPUTS.items():
    object.__setattr__(output, "build", told(topic, output.build))
cloud.points = told("cloud", cloud.points)
cloud.valid_mask = told("mask", cloud.valid_mask)
from come_ros.ros.main import main
sys.exit(main())
"""


def send(peer: Peer, frames: range, pause_s: float = 0.0) -> list[int]:
    """Sends them, never more at once than a window takes; their stamps. All from 0 on were sent before."""
    sent = [START_NS + i * STEP_NS for i in frames]
    for i, stamp in zip(frames, sent, strict=True):
        if i > frames.start and i % 4 == 0:
            used(peer, i)
        peer.send(picture(i), stamp)
        time.sleep(pause_s)
    return sent


def used(peer: Peer, received: int) -> int:
    """How many frames were used, once `received` are in and none is pending."""

    def status() -> dict[str, str]:
        values = peer.status("come: input")
        return values if values.get("received") == str(received) and values["pending"] == "0" else {}

    return int(wait_until(status, what=f"{received} frames: {peer.status('come: input')}")["used"])


def run(start_node, peer: Peer, *arguments: str, **options) -> NodeProcess:
    """An active node, connected to `peer`."""
    peer.listen("/diagnostics", message_type("diagnostic_msgs/msg/DiagnosticArray"))
    node = start_node(*NODE, *arguments, **options)
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    return node


def stamps(messages: list) -> list[int]:
    return [stamp_ns(m.header.stamp) for m in messages]


def test_all_outputs_come_once_for_each_used_frame_and_fit_each_other(start_node, peer: Peer) -> None:
    out = {topic: peer.listen(f"/come/{topic}", message_type(o.kind)) for topic, o in OUTPUTS.items()}
    run(start_node, peer, "-p", "cloud.conf_percentile:=20.0")
    sent = send(peer, range(12))
    count = used(peer, len(sent))
    assert count > 5
    wait_until(lambda: all(len(got) >= count for got in out.values()), what="all messages")
    time.sleep(0.3)
    expected = stamps(out["odometry"])
    assert expected == sorted(set(expected)) and set(expected) <= set(sent)
    for topic, got in out.items():
        assert stamps(got) == expected, f"{topic}: ExactTime must match all of them"
    plan = plan_resize(WIDTH, HEIGHT, 224, 14)
    names = ("rgb/image_rect", "rgb/camera_info", "depth/image", "depth/camera_info", "confidence")
    for rgb, rgb_info, depth, depth_info, confidence in zip(*(out[n] for n in names), strict=True):
        assert rgb.header == rgb_info.header == depth.header == depth_info.header == confidence.header
        assert rgb_info == depth_info
        np.testing.assert_allclose(np.reshape(rgb_info.k, (3, 3)), crop_intrinsics(K, plan))
        size = (plan.width, plan.height)
        assert all((m.width, m.height) == size for m in (rgb, rgb_info, depth, confidence))
        assert (rgb.encoding, rgb.step, confidence.encoding) == ("rgb8", 3 * plan.width, "32FC1")
        index = (stamp_ns(rgb.header.stamp) - START_NS) // STEP_NS
        pixels = np.frombuffer(rgb.data, np.uint8).reshape(plan.height, plan.width, 3)
        np.testing.assert_array_equal(pixels, preprocess(picture(index), plan), "not the pixels the model saw")
        # the stand-in's depth is made of the brightness of that very pixel
        z = np.frombuffer(depth.data, "<f4").reshape(plan.height, plan.width)
        valid = np.isfinite(z)
        gray = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        ratio = z[valid] / (1 + 4 * gray[valid] / 255)  # one scale for the whole frame
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-4)
        surer = np.frombuffer(confidence.data, "<f4").reshape(plan.height, plan.width)
        assert np.isfinite(surer).all() and surer[valid].min() >= np.percentile(surer, 19)


def test_nothing_is_built_that_nobody_listens_to(start_node, peer: Peer) -> None:
    node = run(start_node, peer, script=COUNTING)
    send(peer, range(4))
    assert used(peer, 4) == 4
    assert "built:" not in node.log
    peer.listen("/come/rgb/image_rect", Image)
    peer.listen("/come/depth/camera_info", CameraInfo)
    wait_until(lambda: all(peer.node.count_subscribers(t) for t in peer.received), what="subscriptions")
    time.sleep(0.5)
    send(peer, range(4, 8))
    assert used(peer, 8) == 8
    wait_until(lambda: len(peer.received["/come/rgb/image_rect"]) == 4)
    built = {line.rpartition("built: ")[2] for line in node.lines if "built:" in line}
    assert built == {"rgb/image_rect", "depth/camera_info"}


def test_who_comes_late_gets_the_path_the_map_and_the_scale(start_node, peer: Peer) -> None:
    run(start_node, peer, "-p", "map.enabled:=true", "-p", "map.voxel:=0.1", "-p", "map.max_points:=5000",
        "-p", "map.rate:=5.0", "-p", "path_max_size:=5", "-p", "scale.mode:=fixed", "-p", "scale.fixed:=2.0")  # fmt: skip
    poses = peer.listen("/come/odometry", message_type("nav_msgs/msg/Odometry"))
    wait_until(peer.matched)
    time.sleep(0.3)
    sent = send(peer, range(10), 0.1)
    assert used(peer, 10) == 10
    time.sleep(1.5)  # longer than either of them may wait
    path, scale = peer.listen("/come/path", Path, LATCHING), peer.listen("/come/scale", Float64, LATCHING)
    cloud = peer.listen("/come/map_points", PointCloud2, LATCHING)
    wait_until(lambda: path and scale and cloud, what="the last of each")
    assert scale[-1].data == 2.0
    assert stamps(path[-1].poses) == sent[-5:] and stamps(path) == [sent[-1]]
    assert path[-1].header.frame_id == cloud[-1].header.frame_id == "visual_odom", "without TF there is one world frame"
    assert [p.pose for p in path[-1].poses] == [m.pose.pose for m in poses[-5:]]
    points = points_of(cloud[-1])
    assert 500 < len(points) <= 5000 and np.isfinite(points["x"]).all() and stamps(cloud) == [sent[-1]]
    cells = np.floor(np.stack([points[a] for a in "xyz"], axis=1).astype(np.float64) / 0.1)
    assert len(np.unique(cells, axis=0)) > 0.99 * len(points), "one point in each voxel"


def test_path_and_map_come_now_and_then_and_without_a_map_none(start_node, peer: Peer) -> None:
    path, cloud = peer.listen("/come/path", Path, LATCHING), peer.listen("/come/map_points", PointCloud2, LATCHING)
    scale = peer.listen("/come/scale", Float64, LATCHING)
    run(start_node, peer)
    begun = time.monotonic()
    send(peer, range(25), 0.1)
    assert used(peer, 25) > 5
    time.sleep(1.2)
    assert 2 <= len(path) <= 1 + (time.monotonic() - begun)
    assert len(path[-1].poses) == used(peer, 25)
    assert not cloud and len(scale) == 1 and np.isnan(scale[0].data)


def test_kept_topics_are_reliable_and_transient_local(start_node, peer: Peer) -> None:
    run(start_node, peer)
    for name in LATCHED:
        (info,) = wait_until(lambda name=name: peer.node.get_publishers_info_by_topic(f"/come/{name}"))
        assert info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        assert info.qos_profile.reliability.name == "RELIABLE"
