"""Several cameras in the worker and in the live node: sets are matched, what has no partners is counted, each camera has its topics."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from hypothesis import given, settings
from hypothesis import strategies as st
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros.live_node import START_NS, STEP_NS, K, Peer, picture, wait_until
from ros.test_worker import read as read_one
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from come_ros.backbones.fake import FakeBackbone
from come_ros.config import Config
from come_ros.pipeline import ReconstructionPipeline
from come_ros.ros import messages
from come_ros.ros.diagnostics.telemetry import Telemetry
from come_ros.ros.worker import Worker
from come_ros.types import Frame

EVENTS = ("ok", "ok", "ok", "lost", "apart", "broken", "size", "pause", "session", "work")


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(2, 4), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=25))
def test_every_image_of_every_camera_is_accounted_for(cameras: int, events: list[tuple[str, int]]) -> None:
    """`events`: what happens to the image of one camera at one instant, or to the worker."""
    names = [f"c{i}" for i in range(cameras)]
    config = Config().replace(
        **{"keyframe.mode": "every", "window.size": 3, "window.overlap": 1, "cameras": "+".join(names)}
    )

    def read(message: tuple[Frame | None, ...], arrival_ns: int) -> Frame:
        first, *others = (read_one(each, arrival_ns) for each in message)
        return replace(first, others=tuple(others))

    published: list[Frame] = []
    worker = Worker(
        config, read, lambda submap, row, _: published.append(submap.frames[row]), Telemetry(), lambda: None
    )
    worker.pipeline = ReconstructionPipeline(config, FakeBackbone())
    worker.activate()

    def balance(pending: int | None = None) -> None:
        counts = worker.counters.snapshot()
        assert counts.balanced() and counts.pending == (counts.pending if pending is None else pending)

    received, height = 0, 56
    for i, (event, which) in enumerate(events):
        height = 126 - height if event == "size" and which % cameras == 0 else height
        for camera, name in enumerate(names):
            stamp = START_NS + i * STEP_NS + camera * 1_000_000
            frame: Frame | None = Frame(np.full((height, 70, 3), i, np.uint8), stamp, name, None, time.monotonic_ns())
            if camera == which % cameras:
                if event == "lost":
                    continue
                stamp += 45_000_000 if event == "apart" else 0
                frame = None if event == "broken" else frame
            worker.put(frame, time.monotonic_ns(), camera, stamp)
            received += 1
            balance()
        if event == "pause":
            worker.pause(which % 2 == 0)
        elif event == "session":
            worker.deactivate()
            worker._give_up("paused")  # as its thread does
            balance(0)
            worker.activate()
        elif event == "work":
            worker._step(worker.pipeline, worker._session)
        balance()
    while worker._kept or len(worker.ring):
        worker._step(worker.pipeline, worker._session)
    counts = worker.counters.snapshot()
    assert counts.received == received and counts.used == len(published) and counts.used % cameras == 0
    assert counts.pending == received - counts.used - sum(counts.dropped.values()) < 10 * cameras
    assert [f.camera for f in published] == names * (len(published) // cameras)
    worker.deactivate()
    balance(0)


def test_two_cameras_live(start_node, peer: Peer) -> None:
    sensor = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
    names = ("left", "right")
    out = {n: peer.node.create_publisher(Image, f"/{n}/image", sensor) for n in names}
    info = {n: peer.node.create_publisher(CameraInfo, f"/{n}/camera_info", sensor) for n in names}
    depth = {n: peer.listen(f"/come/{n}/depth/image", Image) for n in names}
    clouds = {n: peer.listen(f"/come/{n}/points", PointCloud2) for n in names}
    odometry = peer.listen("/come/odometry", Odometry)
    path = peer.listen("/come/path", PathMessage)
    peer.listen("/diagnostics", DiagnosticArray)
    extrinsics = "base_left: 0 0.1 0 -0.5 0.5 -0.5 0.5; base_right: 0 -0.1 0 -0.5 0.5 -0.5 0.5"
    node = start_node(
        "-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2", "-p", "tf.mode:=off",
        "-p", "input.depth:=30", "-p", "cameras:=[left, right]", "-p", f"extrinsics:='{extrinsics}'", "-p", "base_frame:=base_link",
    )  # fmt: skip
    node.wait_for("active:")
    wait_until(
        lambda: (
            all(p.get_subscription_count() for p in (*out.values(), *info.values()))
            and int(peer.status("come: input").get("publishers", 0))
            and all(peer.node.count_publishers(topic) for topic in peer.received)
        ),
        what="discovery",
    )
    time.sleep(0.3)

    def send(i: int, name: str, late_ns: int = 0) -> None:
        head = messages.header(START_NS + i * STEP_NS + late_ns, f"base_{name}")
        size = (320, 240) if name == "left" else (400, 240)
        info[name].publish(messages.camera_info_message(K, *size, head))
        out[name].publish(messages.image_message(picture(i, *size), head))

    def counted(received: int) -> dict[str, str]:
        def status() -> dict[str, str]:
            values = peer.status("come: input")
            return values if int(values.get("received", 0)) == received else {}

        return wait_until(status, what=f"{received} images: {peer.status('come: input')}")

    for i in range(12):
        send(i, "left")
        send(i, "right", late_ns=3_000_000)
        time.sleep(0.1)
    wait_until(lambda: int(counted(24)["pending"]) == 0, what="all of them")
    status = counted(24)
    used = int(status["used"])
    assert used > 8 and used % 2 == 0 and status["dropped_sync"] == "0" and status["extrinsics"] != ""
    wait_until(lambda: len(odometry) == used // 2 and all(len(depth[n]) == used // 2 for n in names), what="outputs")
    wait_until(lambda: all(len(clouds[n]) == used // 2 for n in names), what="clouds")
    for name in names:
        assert {m.header.frame_id for m in depth[name]} == {f"base_{name}"}
        assert len({(m.width, m.height) for m in depth[name]}) == 1
    assert (depth["left"][0].width, depth["left"][0].height) == (depth["right"][0].width, depth["right"][0].height)
    stamps = [messages.stamp_ns(m.header.stamp) for m in odometry]
    assert stamps == sorted(set(stamps)) == [messages.stamp_ns(m.header.stamp) for m in depth["left"]]
    assert [s + 3_000_000 for s in stamps] == [messages.stamp_ns(m.header.stamp) for m in depth["right"]]
    assert {m.child_frame_id for m in odometry} == {"base_link"}
    assert np.allclose(messages.pose_of(odometry[0].pose.pose), np.eye(4), atol=1e-9)
    wait_until(lambda: path and len(path[-1].poses) == used // 2, what="one pose for each set")

    def told(text: str) -> bool:
        return any(
            text in status.message
            for array in list(peer.received["/diagnostics"])
            for status in array.status
            if status.name == "come: input"
        )

    for i in range(12, 30):  # the right camera is gone, and then out of step
        send(i, "left")
        time.sleep(0.02)
    wait_until(
        lambda: told("had no partners of all cameras within 0.02 s, /right/image is waited for"), what="a warning"
    )
    for i in range(30, 34):
        send(i, "left")
        send(i, "right", late_ns=45_000_000)
        time.sleep(0.02)
    status = counted(24 + 18 + 8)
    assert int(status["used"]) == used and int(status["dropped_sync"]) >= 18 + 3
    balance = (
        int(status["used"])
        + int(status["pending"])
        + sum(int(v) for k, v in status.items() if k.startswith("dropped_"))
    )
    assert balance == int(status["received"])
