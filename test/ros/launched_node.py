"""For launch_testing: the node by its launch file, a bag played to it; topics, rates, stamps, and the end. Run by test_launch_testing.py,
or by `launch_test test/ros/launched_node.py`."""

from __future__ import annotations

import itertools
import sys
import tempfile
import unittest
from pathlib import Path

import launch_testing
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from launch import LaunchDescription
from launch.actions import ExecuteProcess, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_testing.actions import ReadyToTest
from launch_testing.asserts import assertExitCodes
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from ros.live_node import PATIENCE_S, START_NS, STEP_NS, K, Peer, picture, wait_until  # noqa: E402

from come_ros.datasets.bag_writer import BagWriter  # noqa: E402
from come_ros.ros import messages  # noqa: E402
from come_ros.types import Frame  # noqa: E402

FOLDER = tempfile.TemporaryDirectory(prefix="come_ros_launched_")
IMAGES = 20
STAMPS = [START_NS + i * STEP_NS for i in range(IMAGES)]
PARAMETERS = """
/**:
  ros__parameters:
    keyframe: {mode: every}
    diagnostics: {period: 0.2}
    backpressure: all
    input: {reliability: reliable, depth: 50}
"""


def generate_test_description():
    bag, parameters = Path(FOLDER.name, "bag"), Path(FOLDER.name, "own.yaml")
    parameters.write_text(PARAMETERS)
    with BagWriter(bag) as writer:
        for i, stamp_ns in enumerate(STAMPS):
            writer.write(Frame(picture(i), stamp_ns, "cam", K))
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(ROOT / "launch/come.launch.py")),
        launch_arguments={"backbone": "fake", "params_file": str(parameters)}.items(),
    )
    # it waits for the node, and for the test, which listens to the images once it has found the node's topics
    player = [
        sys.executable,
        "-m",
        "come_ros.ros.programs.player",
        str(bag),
        "--listeners",
        "2",
        "--reliability",
        "reliable",
    ]
    camera = ExecuteProcess(cmd=player, output="screen")
    return LaunchDescription([node, camera, ReadyToTest()]), {"camera": camera}


class TestLaunched(unittest.TestCase):
    def setUp(self) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.peer = Peer(self.context)

    def tearDown(self) -> None:
        self.peer.close()
        self.context.try_shutdown()

    def test_topics_rates_and_stamps(self, proc_info, camera) -> None:
        outputs = {"odometry": Odometry, "points": PointCloud2, "depth/image": Image, "depth/camera_info": CameraInfo}
        got = {name: self.peer.listen(f"/come/{name}", kind) for name, kind in outputs.items()}
        self.peer.listen("/diagnostics", DiagnosticArray)
        wait_until(lambda: all(self.peer.node.count_publishers(f"/come/{name}") for name in outputs), what="topics")
        images = self.peer.listen("/camera/image_raw", Image, 10)
        self.peer.listen("/camera/camera_info", CameraInfo, 10)
        proc_info.assertWaitForShutdown(camera, timeout=PATIENCE_S)

        def at_rest() -> bool:
            status = self.peer.status("come: input")
            return int(status["received"]) > 0 == int(status["pending"]) and int(status["used"]) == len(got["odometry"])

        try:
            wait_until(at_rest)
        finally:
            status = self.peer.status("come: input")
            print(f"images played {IMAGES}, here {len(images)}; node: {status}")
        assert len(images) == IMAGES == int(status["received"])
        # of backpressure all: every one, in order
        assert int(status["used"]) == IMAGES
        for name, messages_got in got.items():
            stamps = [messages.stamp_ns(m.header.stamp) for m in messages_got]
            assert len(stamps) == len(got["odometry"]), f"{name}: {len(stamps)} messages"
            assert set(stamps) <= set(STAMPS) and all(a < b for a, b in itertools.pairwise(stamps)), name
        assert status["topic"] == "/camera/image_raw" and status["camera_info"] == "ok"


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    def test_all_ended_well(self, proc_info) -> None:
        assertExitCodes(proc_info)
        FOLDER.cleanup()
