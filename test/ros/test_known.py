"""What is known next to images, from topics to the model: buffers and interpolation by themselves, then through the live node."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros.live_node import HEIGHT, START_NS, STEP_NS, WIDTH, K, Peer, node_with, picture, wait_until
from sensor_msgs.msg import Image
from std_msgs.msg import Float64

from come_ros import geometry
from come_ros.camera.preprocess import crop_depth, crop_intrinsics, plan_resize, preprocess
from come_ros.camera.rig import pose_of_words
from come_ros.config import Config
from come_ros.datasets.known import nearest, pose_at
from come_ros.errors import ConfigError
from come_ros.ros import messages
from come_ros.ros.known import PoseSource, Stamped

MS = 1_000_000
BASE_FROM_CAMERA = "0.1 0.0 0.3 -0.5 0.5 -0.5 0.5"  # looks along the vehicle's x


def filled(stamps_ms, now_ms, wait_s=0.0):
    buffer: Stamped[int] = Stamped()
    for s in stamps_ms:
        buffer.put(s * MS, s)
    return [item for _, item in buffer.around(now_ms * MS, wait_s)]


@pytest.mark.parametrize(
    ("now", "found"), [(10, [10]), (15, [10, 20]), (5, [10]), (35, [30]), (30, [30]), (2000, [30])]
)  # fmt: skip
def test_the_neighbours_of_a_stamp(now, found):
    assert filled([10, 20, 30], now) == found
    assert filled([], now) == []


def test_stamps_that_go_back_start_again():
    assert filled([100, 110, 20], 105) == [20]


def test_what_is_on_its_way_is_waited_for():
    buffer: Stamped[str] = Stamped()
    buffer.put(10 * MS, "old")
    threading.Timer(0.05, lambda: buffer.put(30 * MS, "new")).start()
    assert [item for _, item in buffer.around(20 * MS, 2.0)] == ["old", "new"]
    start = time.monotonic()
    assert [item for _, item in buffer.around(40 * MS, 0.1)] == ["new"]
    assert 0.09 < time.monotonic() - start < 1.0
    start = time.monotonic()  # a topic that died is not waited for
    assert [item for _, item in buffer.around(5000 * MS, 2.0)] == ["new"] and time.monotonic() - start < 1.0


def test_the_nearest_counts_only_within_the_tolerance():
    found = [(10 * MS, "a"), (20 * MS, "b")]
    assert nearest(found, 14 * MS, 0.005) == "a" and nearest(found, 16 * MS, 0.005) == "b"
    assert nearest(found, 15 * MS, 0.004) is None and nearest([], 0, 1.0) is None


def test_poses_are_interpolated_on_a_screw_without_its_pitch():
    a = geometry.transform(geometry.rotation_from_vector([0.1, 0.2, -0.3]), [1.0, 2, 3])
    turn = np.array([0.2, -0.4, 0.6])
    b = geometry.transform(a[:3, :3] @ geometry.rotation_from_vector(turn), [2.0, 2, 1])
    quarter = pose_at([(0, a), (400 * MS, b)], 100 * MS, 0.0)
    np.testing.assert_allclose(quarter[:3, :3], a[:3, :3] @ geometry.rotation_from_vector(turn / 4))
    np.testing.assert_allclose(quarter[:3, 3], [1.25, 2, 2.5])
    assert pose_at([(0, a), (600 * MS, b)], 300 * MS, 0.05) is None, "too far apart to know what was between"
    assert pose_at([(0, a), (600 * MS, b)], 20 * MS, 0.05) is a


@pytest.mark.parametrize("text", ["1 2 3", "0 0 0 0 0 0 0", "1 2 3 nan 0 0 1", "a b c d e f g"])
def test_a_wrong_place_of_the_camera_says_what_it_must_be(text):
    with pytest.raises(ConfigError, match=r"known\.base_from_camera is .* seven numbers 'x y z qx qy qz qw'"):
        PoseSource(Config().replace(**{"known.base_from_camera": text}))


def test_odometry_of_another_frame_needs_the_cameras_place_in_it():
    pose = geometry.transform(np.eye(3), [1.0, 0, 0])
    source = PoseSource(Config())
    assert source.at(0, "cam", 0.05)[0] is None
    source.put(0, "base_link", pose)
    got, remark = source.at(0, "cam", 0.05)
    assert got is None and "base_link" in remark and "known.base_from_camera" in remark
    source.put(10 * MS, "cam", pose)
    np.testing.assert_array_equal(source.at(10 * MS, "cam", 0.05)[0], pose)
    placed = PoseSource(Config().replace(**{"known.base_from_camera": "0 0 2 0 0 0 1"}))
    placed.put(0, "base_link", pose)
    np.testing.assert_allclose(placed.at(0, "cam", 0.05)[0][:3, 3], [1, 0, 2])


ECHO = node_with(
    "Echo()",
    """
from dataclasses import replace
import numpy as np

class Echo(FakeBackbone):
    '''Says what it is told.'''
    inputs, metric = frozenset({"intrinsics", "depth", "poses"}), True

    def predict(self, images, stop=None, known=None, step=None):
        out = super().predict(images, stop)
        self.about = {**self.about, "unit": "metre"}
        if known is None:
            return out
        first = np.linalg.inv(known.world_from_camera[0])
        poses = first @ known.world_from_camera
        return replace(
            out, depth=np.where(np.isfinite(known.depth), known.depth, np.float32(9)), intrinsics=known.intrinsics,
            window_from_camera=poses if np.isfinite(poses).all() else out.window_from_camera,
        )
""",
)


class Robot:
    """A peer with a depth camera and wheels. Odometry is of base_link, between the images."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        qos = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.depth = peer.node.create_publisher(Image, "/depth", qos)
        self.odometry = peer.node.create_publisher(Odometry, "/odometry", 20)

    def matched(self, topics: tuple[str, ...] = ("depth", "odometry")) -> bool:
        return all(getattr(self, topic).get_subscription_count() for topic in topics)

    @staticmethod
    def world_from_base(stamp_ns: int) -> np.ndarray:
        s = (stamp_ns - START_NS) * 1e-9
        return geometry.transform(geometry.rotation_from_vector([0, 0, 0.3 * s]), [0.5 * s, 0.1 * s, 0.0])

    @staticmethod
    def world_from_camera(stamp_ns: int) -> np.ndarray:
        return Robot.world_from_base(stamp_ns) @ pose_of_words(BASE_FROM_CAMERA, "")

    @staticmethod
    def depth_mm(index: int) -> np.ndarray:
        v, u = np.mgrid[:HEIGHT, :WIDTH]
        depth = (1500 + 3 * u + 2 * v + 100 * index).astype(np.uint16)
        depth[:, ::7] = 0  # holes
        return depth

    def send(self, index: int, stamp_ns: int) -> None:
        for offset in (-STEP_NS // 2, STEP_NS // 4):
            stamp = stamp_ns + offset
            odometry = Odometry(header=messages.header(stamp, "odom"), child_frame_id="base_link")
            pose = self.world_from_base(stamp)
            odometry.pose.pose = messages.pose_message(pose)
            self.odometry.publish(odometry)
        raw = self.depth_mm(index)
        head = messages.header(stamp_ns + 3 * MS, "cam_optical_frame")
        message = Image(header=head, height=HEIGHT, width=WIDTH, encoding="16UC1", step=2 * WIDTH)
        message.data = messages.payload(raw)
        self.depth.publish(message)
        self.peer.send(picture(index), stamp_ns)


def started(start_node, peer, *arguments, wait_for=("depth", "odometry"), **options):
    robot = Robot(peer)
    peer.listen_to_outputs()
    node = start_node(
        "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2", "-p", "tf.mode:=off", "-p", "known.depth:=true",
        "-p", "known.odometry:=true", "-p", f"known.base_from_camera:='{BASE_FROM_CAMERA}'", "-p", "backpressure:=all",
        "-p", "input.depth:=20", "-p", "window.size:=4", "-p", "window.overlap:=2", "-p", "cloud.conf_percentile:=0.0",
        *arguments, **options,
    )  # fmt: skip
    node.wait_for("active:")
    wait_until(lambda: peer.matched() and robot.matched(wait_for), what="discovery")
    return node, robot


def test_depth_odometry_and_camera_info_reach_the_model_and_metres_come_out(start_node, peer: Peer) -> None:
    scale = peer.listen("/come/scale", Float64, messages_qos())
    node, robot = started(
        start_node, peer, "-p", "backbone:=fake", "-p", "cloud.edge_filter:=false", "-p", "scale.mode:=none", script=ECHO
    )  # fmt: skip
    stamps = [START_NS + i * STEP_NS for i in range(8)]
    for i, stamp in enumerate(stamps):
        robot.send(i, stamp)
        time.sleep(0.05)
    depths, odometry = peer.received["/come/depth/image"], peer.received["/come/odometry"]
    wait_until(lambda: len(depths) == len(odometry) == 8, what="all frames to come out")
    plan = plan_resize(WIDTH, HEIGHT, 224, 14)
    for i, message in enumerate(depths):
        got = np.frombuffer(message.data, np.float32).reshape(plan.height, plan.width)
        expected = crop_depth((Robot.depth_mm(i) * np.float32(1e-3)).astype(np.float32), plan)
        np.testing.assert_allclose(got, np.where(np.isfinite(expected), expected, 9), rtol=1e-6)
    poses = np.stack([messages.pose_of(m.pose.pose) for m in odometry])
    true = np.stack([Robot.world_from_camera(s) for s in stamps])
    # interpolated over 75 ms of a turn: off by some micrometres
    np.testing.assert_allclose(
        geometry.inverse(poses[0]) @ poses, geometry.inverse(true[0]) @ true, atol=1e-4
    )  # metres, though windows were laid together
    info = peer.received["/come/depth/camera_info"][-1]
    np.testing.assert_allclose(np.array(info.k).reshape(3, 3), crop_intrinsics(K, plan))
    variance = np.diag(np.array(odometry[0].pose.covariance).reshape(6, 6))
    assert (variance < 1.0).all(), "metres are known, so the position is"
    wait_until(lambda: scale and scale[-1].data == 1.0, what="~/scale to say metres")
    wait_until(lambda: peer.status("come: output").get("scale_source") == "model", what="diagnostics of the scale")
    status = peer.status("come: output")
    assert status["scale"] == "1" and "scale" not in status["message"]
    status = peer.status("come: input")
    assert status["depth"] == status["odometry"] == "ok"
    assert "the model is metric" in node.log


def messages_qos():
    from rclpy.qos import DurabilityPolicy

    return QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_a_mapanything_model_in_the_node_uses_what_the_topics_bring(tmp_path, start_node, peer: Peer) -> None:
    """A small random one: the node publishes what the pipeline makes of the same frames, and that depends on every topic."""
    torch = pytest.importorskip("torch")
    from models import tiny

    from come_ros.backbones.checkpoint import save_checkpoint
    from come_ros.pipeline import ReconstructionPipeline
    from come_ros.types import Frame

    model = tiny("mapanything", seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_encoder.norm_layer" in name:
                parameter.mul_(20)  # known geometry counts
            if name == "dense_head.1.conv2.2.bias":
                parameter[5] += 5  # all depth means something
    weights = str(tmp_path / "m.safetensors")
    save_checkpoint(weights, model, torch.float32)
    _, robot = started(
        start_node, peer, "-p", "backbone:=mapanything", "-p", f"weights:={weights}", "-p", "device:=cpu",
        "-p", "threads:=1", "-p", "cloud.edge_filter:=false",
    )  # fmt: skip
    stamps = [START_NS + i * STEP_NS for i in range(4)]
    for i, stamp in enumerate(stamps):
        robot.send(i, stamp)
        time.sleep(0.05)
    depths = peer.received["/come/depth/image"]
    wait_until(lambda: len(depths) == 4, what="one window")

    def offline(**without):
        given = {"known.depth": True, "known.odometry": True, **without}
        config = Config().replace(
            backbone="mapanything", weights=weights, device="cpu", threads=1,
            **{"keyframe.mode": "every", "window.size": 4, "window.overlap": 2, "refine.mode": "none", **given},
        )  # fmt: skip
        frames = [
            Frame(
                picture(i), s, "cam_optical_frame", K, depth=Robot.depth_mm(i) * np.float32(1e-3),
                world_from_camera=Robot.world_from_camera(s),
            )
            for i, s in enumerate(stamps)
        ]  # fmt: skip
        (submap,) = ReconstructionPipeline(config).run(frames)
        assert submap.alignment.accepted, submap.alignment.reason
        return submap.depth

    got = np.stack([np.frombuffer(m.data, np.float32).reshape(m.height, m.width) for m in depths])
    assert np.isfinite(got).all()
    expected = offline()
    own = np.abs(got / expected - 1).max()
    others = [
        np.abs(offline(**{name: False}) / expected - 1).max()
        for name in ("known.depth", "known.odometry", "known.intrinsics")
    ]
    assert own < 1e-4 and min(others) > 10 * own and min(others) > 1e-3, (own, others)


def test_a_depth_topic_gives_metres_to_a_model_without_a_unit(start_node, peer: Peer) -> None:
    """In the node, with the same code as in the tool: ~/scale, odometry's covariance, TF's frames and diagnostics."""
    scale = peer.listen("/come/scale", Float64, messages_qos())
    _node, robot = started(
        start_node, peer, "-p", "backbone:=fake", "-p", "known.depth:=false", "-p", "known.odometry:=false",
        "-p", "scale.mode:=depth", "-p", "scale.max_sigma:=1.0", "-p", "refine.mode:=none", wait_for=("depth",),
    )  # fmt: skip
    for i in range(8):
        robot.send(i, START_NS + i * STEP_NS)
        time.sleep(0.05)
    odometry = peer.received["/come/odometry"]
    wait_until(lambda: len(odometry) == 8, what="all frames to come out")
    ratios = []
    plan = plan_resize(WIDTH, HEIGHT, 224, 14)
    for i in range(4):  # of the first window, as the fake has depth
        gray = preprocess(picture(i), plan).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        real = crop_depth((Robot.depth_mm(i) * np.float32(1e-3)).astype(np.float32), plan)
        good = np.isfinite(real)
        ratios.append(np.median(np.log(real[good] / (1 + 4 * gray[good] / 255))))
    first = float(np.exp(np.median(ratios)))
    wait_until(lambda: scale and np.isfinite(scale[-1].data), what="~/scale to say metres")
    assert scale[-1].data == pytest.approx(first, rel=0.3)
    variance = np.diag(np.array(odometry[0].pose.covariance).reshape(6, 6))
    assert (variance[:3] < 9999).all(), "metres are known, so the position is"
    wait_until(lambda: peer.status("come: output").get("scale_source") == "depth", what="diagnostics of the scale")
    status = peer.status("come: output")
    assert status["odom_unit"] == status["map_unit"] == "metre" and 0 < float(status["scale_sigma"]) < 1
    assert status["scale_conflict"] == "none"
    wait_until(
        lambda: abs(float(peer.status("come: output")["scale"]) - scale[-1].data) < 1e-3, what="both to be the last"
    )
    assert "depth" in status["scale_by_source"] and float(status["scale_age_s"]) < 5


def test_odometry_that_is_not_finite_is_counted_and_told(start_node, peer: Peer) -> None:
    node, robot = started(
        start_node, peer, "-p", "backbone:=fake", "-p", "known.depth:=false", "-p", "known.odometry:=false",
        "-p", "scale.mode:=odometry", "-p", "refine.mode:=none", wait_for=("odometry",),
    )  # fmt: skip
    for i in range(6):
        for place, w in ((float("nan"), 1.0), (0.0, 0.0)):  # not finite; no rotation
            message = Odometry(header=messages.header(START_NS + i * STEP_NS, "odom"), child_frame_id="base_link")
            message.pose.pose.position.x, message.pose.pose.orientation.w = place, w
            robot.odometry.publish(message)
        peer.send(picture(i), START_NS + i * STEP_NS)
        time.sleep(0.05)
    node.wait_for("a pose on odometry is left out")
    wait_until(lambda: "not finite" in peer.status("come: input").get("odometry", ""), what="the diagnostics")
    wait_until(lambda: "no odometry" in peer.status("come: output").get("scale_left_out", ""), what="the count")
    assert peer.status("come: output")["scale"] == "nan" and "not known yet" in peer.status("come: output")["message"]


def test_a_backbone_that_takes_no_depth_is_told_at_start(start_node) -> None:
    node = start_node("-p", "backbone:=fake", "-p", "known.depth:=true", "-p", "scale.mode:=none")
    node.wait_for(
        "known.depth is true, but the backbone fake takes no depth: set it to false, or backbone to mapanything"
    )
