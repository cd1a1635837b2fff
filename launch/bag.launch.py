"""Plays a bag to the node: all of come.launch.py, and `ros2 bag play` as soon as the node is active."""

from __future__ import annotations

import os
import sys

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetLaunchConfiguration,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, ThisLaunchFileDir

from come_ros.outputs.topics import LATCHED, OUTPUTS

EITHER = ["true", "false"]
DISCOVERY_S = 1.0  # from the publishers' start to the first message: before they are found, messages are lost
LINGER_S = 3.0  # from the last message to the end: what is still being reconstructed comes out


def value(context: LaunchContext, name: str) -> str:
    return LaunchConfiguration(name).perform(context)


def choose_topic(context: LaunchContext) -> list[Action]:
    """The image topic, as the node wants it: the only one of the bag, unless it is given. Raises DatasetError."""
    topic = value(context, "image_topic")
    if not topic:
        try:
            from come_ros.datasets.rosbag import Bag

            with Bag(os.path.expanduser(value(context, "bag"))) as bag:
                topic = bag.topic
        except ModuleNotFoundError as error:
            raise RuntimeError(f"{error}: pip install rosbags, or say image_topic:=/the/topic") from error
    raw = topic.removesuffix("/compressed")
    chosen = [LogInfo(msg=f"images: {topic}"), SetLaunchConfiguration("image_topic", raw)]
    return chosen if raw == topic else [*chosen, SetLaunchConfiguration("image_transport", "compressed")]


def play(context: LaunchContext) -> list[Action]:
    """Wait, play, record, and the end of it all."""
    namespace = value(context, "namespace").strip("/")
    node = f"/{namespace}/come" if namespace else "/come"
    loop = value(context, "loop") == "true"
    player = ExecuteProcess(
        cmd=[
            "ros2", "bag", "play", os.path.expanduser(value(context, "bag")), "--clock", "--delay", str(DISCOVERY_S),
            "--rate", value(context, "rate"), "--start-offset", value(context, "start_offset"), *["--loop"] * loop,
        ],
        name="bag_play", output="screen",
    )  # fmt: skip
    wait = ExecuteProcess(
        cmd=[sys.executable, "-m", "come_ros.ros.programs.readiness", "--node", node], name="wait_until_active"
    )

    def end(reason: str) -> list[Action]:
        return [LogInfo(msg=reason), EmitEvent(event=Shutdown(reason=reason))]

    def begin(event: ProcessExited, context: LaunchContext) -> list[Action]:
        return end("the node cannot be activated") if event.returncode else [player]

    actions: list[Action] = [
        RegisterEventHandler(OnProcessExit(target_action=wait, on_exit=begin)),
        RegisterEventHandler(
            OnProcessExit(target_action=player, on_exit=[TimerAction(period=LINGER_S, actions=end("the bag is over"))])
        ),
        wait,
    ]
    if record := value(context, "record"):
        ours = [f"{node}/([^/]+/)?{topic}" for topic in (*OUTPUTS, *LATCHED)]  # of several cameras below their names
        topics = "|".join([*ours, "/tf", "/tf_static", "/diagnostics"])
        # by a pattern: lists of topics are given in other ways from distribution to distribution
        command = ["ros2", "bag", "record", "-o", os.path.expanduser(record), "--regex", f"^({topics})$"]
        actions.insert(0, ExecuteProcess(cmd=command, name="bag_record", output="screen"))
    return actions


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="the bag to play: a folder, .mcap or .db3 (required)"),
            DeclareLaunchArgument("rate", default_value="1.0", description="speed, 1.0 as recorded"),
            DeclareLaunchArgument(
                "loop", default_value="false", choices=EITHER, description="again and again; else all ends with the bag"
            ),
            DeclareLaunchArgument(
                "start_offset", default_value="0.0", description="begin so many seconds into the bag"
            ),
            DeclareLaunchArgument(
                "image_topic", default_value="", description="the camera's images; empty: the only ones in the bag"
            ),
            DeclareLaunchArgument(
                "record", default_value="", description="new folder: record what the node publishes into it; empty: not"
            ),
            # before the included ones, whose defaults are others
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="true",
                choices=EITHER,
                description="take the time from /clock, of the bag",
            ),
            DeclareLaunchArgument("rviz", default_value="true", choices=EITHER, description="start RViz as well"),
            OpaqueFunction(function=choose_topic),
            IncludeLaunchDescription(PythonLaunchDescriptionSource([ThisLaunchFileDir(), "/come.launch.py"])),
            OpaqueFunction(function=play),
        ]
    )
