"""Odometry at the camera's rate in the live node: a pose of every image, in time, whatever the model does."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ros.live_node import HEIGHT, START_NS, STEP_NS, WIDTH, K, Peer, wait_until
from ros.test_node import EVERY, SLOW, assert_ends_well, settled, stamps

from come_ros.backbones.fake import FakeBackbone
from come_ros.config import Config
from come_ros.datasets.bag_writer import BagWriter
from come_ros.pipeline import ReconstructionPipeline
from come_ros.ros.diagnostics.telemetry import Telemetry
from come_ros.ros.worker import Worker
from come_ros.threads import FIRST
from come_ros.tools.cli import main as run_tool
from come_ros.tracking.odometry import Located
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
    assert len(odometry) > 0.5 * int(status["received"]), "a loaded machine may lose some"
    depth = peer.received["/come/depth/image"]
    assert 0 < len(depth) == int(status["used"]) < len(odometry)
    values = peer.status("come: output")
    assert float(values["pose_hz"]) > 0 and int(values["pose_points"]) > 50
    assert float(values["pose_latency_ms"]) < 400, "no pose waits for the model"
    if sys.platform == "linux":  # only tracking goes first, and what it starts
        of_threads = {
            os.getpriority(os.PRIO_PROCESS, int(t.name)) for t in Path(f"/proc/{node.process.pid}/task").iterdir()
        }
        usual = os.getpriority(os.PRIO_PROCESS, node.process.pid)
        assert of_threads == ({usual, FIRST} if values["pose_priority"] == "raised" else {usual})
    assert_ends_well(node, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 5])
def test_with_backpressure_all_the_poses_are_those_of_the_bag_tool(at_once) -> None:
    parameters = {"window.size": 4, "window.overlap": 2, "keyframe.mode": "time", "keyframe.min_interval": 0.2}
    config = Config().replace(backbone="fake", backpressure="all", **parameters)
    frames = [Frame(view(i), START_NS + i * STEP_NS, "cam", K) for i in range(20)]
    wanted: list[Located] = []
    for _ in ReconstructionPipeline(config, FakeBackbone()).run(iter(frames), located=wanted.extend):
        pass

    told: list[Located] = []
    worker = Worker(
        config,
        lambda frame, _: frame,
        lambda *_: None,
        Telemetry(),
        lambda: None,
        publish_pose=lambda pose, _: told.append(pose),
    )
    worker.pipeline = ReconstructionPipeline(config, FakeBackbone())
    worker.activate()
    for i, frame in enumerate(frames):
        worker.put(frame, 0)
        if i % at_once == 0:  # a worker that falls behind finds several
            worker._step(worker.pipeline, worker._session)
    while len(worker.ring):
        worker._step(worker.pipeline, worker._session)
    assert len(told) == len(wanted) == len(frames)
    for ours, theirs in zip(told, wanted, strict=True):
        assert ours.frame.stamp_ns == theirs.frame.stamp_ns
        for name in ("odom_from_camera", "covariance", "twist", "twist_covariance"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def digest(messages: list[Any]) -> list[tuple[int, str]]:
    """Stamp and SHA-256 of what each message of odometry tells, in order."""
    out = []
    for m in messages:
        pose, twist = m.pose.pose, m.twist.twist
        parts = ((pose.position, "xyz"), (pose.orientation, "xyzw"), (twist.linear, "xyz"), (twist.angular, "xyz"))
        numbers = [getattr(part, axis) for part, axes in parts for axis in axes]
        told = np.concatenate([numbers, m.pose.covariance, m.twist.covariance])
        words = f"{m.header.frame_id} {m.child_frame_id}".encode()
        stamp = m.header.stamp
        out.append((stamp.sec * 10**9 + stamp.nanosec, hashlib.sha256(told.tobytes() + words).hexdigest()))
    return out


def test_over_dds_with_backpressure_all_odometry_is_that_of_the_bag_tool(
    start_node, peer: Peer, tmp_path: Path
) -> None:
    """By hashes, with the bundle on: poses of all images, twists, and covariances."""
    pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    own = {
        "backbone": "fake", "window.size": 4, "window.overlap": 2, "keyframe.mode": "time", "keyframe.min_interval": 0.2,
        "odometry.rate": "image", "refine.mode": "bundle", "scale.mode": "fixed", "scale.fixed": 2.0, "threads": 1,
    }  # fmt: skip
    count = 24
    with BagWriter(tmp_path / "bag") as writer:
        for i in range(count):
            writer.write(Frame(view(i), START_NS + i * STEP_NS, "cam_optical_frame", K))
    words = [word for name, value in own.items() for word in ("--set", f"{name}={value}")]
    assert run_tool(["bag", str(tmp_path / "bag"), "-o", str(tmp_path / "out"), "--no-view", *words]) == 0
    with (tmp_path / "out" / "output" / "output.mcap").open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        wanted = digest([m for *_, m in reader.iter_decoded_messages(topics=["/come/odometry"])])
    assert len(wanted) == count

    peer.listen_to_outputs()
    given = [word for name, value in own.items() for word in ("-p", f"{name}:={value}")]
    node = start_node(*given, "-p", "backpressure:=all", "-p", "tf.mode:=off", "-p", "diagnostics.period:=0.2")
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    odometry = peer.received["/come/odometry"]
    for i in range(count):  # no faster than it is taken: best effort may lose what waits
        peer.send(view(i), START_NS + i * STEP_NS)
        wait_until(
            lambda n=i + 1: int(peer.status("come: input").get("received", 0)) >= n, what=f"image {i} to be received"
        )
    wait_until(lambda: len(odometry) == count, what="the last pose")
    assert digest(odometry) == wanted
    assert float(peer.status("come: output")["refined"]) > 0, "the bundle had a say"
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
