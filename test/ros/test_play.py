"""`come_ros play` and `come_ros monitor`: a recording of any kind reaches a node as from a camera, and the terminal shows how it does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")

from ros.live_node import START_NS, STEP_NS, K, NodeProcess, Peer, picture, wait_until

from come_ros.datasets.bag_writer import BagWriter
from come_ros.datasets.rosbag import Bag
from come_ros.datasets.sequence import open_sequence
from come_ros.messages import serialized_stamp_ns
from come_ros.ros.programs import camera_messages as camera
from come_ros.ros.programs import player
from come_ros.tools import cli
from come_ros.types import Frame

COUNT = 5
STAMPS = [START_NS + i * STEP_NS for i in range(COUNT)]
COME_ROS = [sys.executable, "-m", "come_ros.tools.cli"]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("play") / "bag"
    with BagWriter(path) as writer:
        for i, stamp in enumerate(STAMPS):
            writer.write(Frame(picture(i), stamp, "cam_optical_frame", K))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("play") / "images"
    path.mkdir()
    for i in range(COUNT):
        cv2.imwrite(str(path / f"{i}.png"), picture(i)[..., ::-1])
    return path


def unexpected(stderr: str) -> list[str]:
    """Lines of stderr other than those that report slow discovery: on a busy machine that takes any number of seconds."""
    slow = ("waiting for a subscriber of ", "/come has ended, or is out of reach: ")
    return [line for line in stderr.splitlines() if not line.startswith(slow)]


def stamps(messages: Any, topic: str) -> list[int]:
    return [serialized_stamp_ns(data) for _, name, data in messages if name == topic]


def test_a_bag_is_played_as_it_was_recorded_on_its_own_topics_or_on_others(bag: Path) -> None:
    with Bag(bag) as opened:
        own, other = camera.of_bag(opened, None, whole=True), camera.of_bag(opened, "/left/", whole=True)
        assert (own.images, own.count) == (("/camera/image_raw",), COUNT)
        assert other.types == {"/left/image_raw": camera.IMAGE, "/left/camera_info": camera.INFO}
        assert [(when, data) for when, _, data in own.source()] == [(when, data) for when, _, data in other.source()]
        assert stamps(other.source(), "/left/image_raw") == stamps(other.source(), "/left/camera_info") == STAMPS


def test_images_of_a_folder_become_messages(folder: Path) -> None:
    with open_sequence(folder, fps=10.0) as recording:
        played = camera.of_recording(recording, "camera")
        got = list(played.source())
    assert played.count == COUNT and [topic for _, topic, _ in got] == ["/camera/image_raw"] * COUNT
    message = deserialize_message(got[2][2], Image)
    np.testing.assert_array_equal(np.frombuffer(bytes(message.data), np.uint8).reshape(240, 320, 3), picture(2))
    assert np.diff([when for when, _, _ in got]) == pytest.approx(1e8)


def test_stamps_may_be_those_of_a_camera_that_runs_now(bag: Path) -> None:
    with Bag(bag) as opened:
        played = camera.of_bag(opened, None, whole=True)
        old = [(0, "/camera/camera_info", next(iter(played.source()))[2])]  # recorded long before the images
        now = list(camera.stamped_now([*old, *played.source()], played.images, 2.0, lambda: 9_000_000_000_000))
    images = stamps(now, "/camera/image_raw")
    assert images == stamps(now[1:], "/camera/camera_info")
    assert images[0] == 9_000_000_000_000 and np.diff(images) == pytest.approx(STEP_NS / 2)


def test_a_loop_goes_on_in_time(bag: Path) -> None:
    with Bag(bag) as opened:
        played = camera.of_bag(opened, None, whole=True)
        rounds = [message for message, _ in zip(camera.repeated(played.source), range(4 * COUNT), strict=False)]
    images = stamps(rounds, "/camera/image_raw")
    assert len(images) == 2 * COUNT and np.diff(images) == pytest.approx(STEP_NS)
    assert [when for when, topic, _ in rounds if topic == "/camera/image_raw"] == images
    assert list(camera.repeated(lambda: ())) == []
    message = deserialize_message(rounds[-2][2], CameraInfo)  # nothing but the stamp is changed
    assert (message.width, message.height, message.k[0]) == (320, 240, K[0, 0])


@pytest.mark.slow
def test_a_node_is_played_to_and_watched(start_node: Callable[..., NodeProcess], peer: Peer, bag: Path) -> None:
    node = start_node("-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2",
                      "-r", "image:=/camera/image_raw")  # fmt: skip
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COME_ROS, "monitor", "--json", "--timeout", "60"], **pipes) as watching:
        node.wait_for("active:")
        wait_until(
            lambda: peer.node.get_subscriptions_info_by_topic("/camera/image_raw"), what="the node's subscription"
        )
        done = subprocess.run([*COME_ROS, "play", str(bag), "--reliability", "reliable"], check=False, timeout=60, **pipes)  # fmt: skip
        assert (done.returncode, unexpected(done.stderr)) == (0, [])
        assert f"{COUNT} images sent on /camera/image_raw" in done.stdout
        assert watching.stdout is not None
        for line in watching.stdout:
            seen = json.loads(line)
            if seen["input"]["used"] == COUNT:
                break
        assert seen["node"] == "/come" and seen["input"]["received"] == COUNT and seen["inference"]["state"] == "active"
        watching.terminate()
        assert watching.wait(60) == 0 and watching.stderr is not None and unexpected(watching.stderr.read()) == []


@pytest.mark.ros
def test_mistakes_are_one_line(bag: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["monitor", "--node", "/nowhere", "--timeout", "0.3"], "found no node /nowhere within 0.3 s: start one"),
        (["monitor", "--timeout", "0"], "--timeout is 0, but must be more than 0"),
        (["play", str(bag), "--rate", "0"], "--rate is 0, but must be more than 0 and at most 100"),
        (["play", str(bag), "--fps", "3"], "--fps has no effect on a bag"),
        (["play", str(bag), "--topic", "/left"], "no colour images on '/left'; it has /camera/image_raw"),
        (["play", str(bag), "--start", "9", "--no-wait"], "has no image in that part"),
        (["play", str(folder)], "have no times: give their rate with --fps"),
        (["play", str(bag / "nowhere")], "nowhere does not exist"),
    ):
        assert cli.main(words) == 1, words
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"come_ros {words[0]}: ") and told in line


def test_without_ros_the_error_names_what_is_missing(bag: Path) -> None:
    script = (
        "import sys; sys.modules['rclpy'] = None; from come_ros.tools import cli; "
        "print(cli.main(['monitor']), cli.main(['play', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bag)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1 1\n"
    assert [line.split(": ", 1)[0] for line in done.stderr.splitlines()] == ["come_ros monitor", "come_ros play"]
    assert all("rclpy" in line and "`come_ros doctor`" in line for line in done.stderr.splitlines())


class Stopped:
    """A Stop that says so from the n-th time on."""

    def __init__(self, times: int) -> None:
        self.left = times

    def is_set(self) -> bool:
        return self.left <= 0

    def wait(self, timeout: float) -> bool:
        self.left -= 1
        return self.is_set()


def test_nobody_listens_and_a_signal_ends_it(peer: Peer, bag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "WAIT_S", -1.0)
    events: list[str] = []
    with Bag(bag) as opened:
        played = camera.of_bag(opened, "nobody", whole=True)
        told = lambda event, **values: events.append(event)  # noqa: E731
        assert player.publish(peer.node, played, 1.0, 1, "reliable", Stopped(3), told) == 3
        assert events == ["waiting"]
        assert player.publish(peer.node, played, 1.0, 1, "reliable", Stopped(4), told, waited_for=()) == 3
    assert events == ["waiting", "matched"]
