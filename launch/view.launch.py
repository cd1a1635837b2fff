"""The 3D view of a running node in the browser: `come_ros view --live`.

ros2 launch come_ros view.launch.py namespace:=robot host:=0.0.0.0
"""

from __future__ import annotations

import sys

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from come_ros.tools.view import HOST, PORT

EITHER = ["true", "false"]


def view(context: LaunchContext) -> list[ExecuteProcess]:
    """The command, once the arguments have their values."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    namespace = value("namespace").strip("/")
    command = [
        sys.executable, "-m", "come_ros.tools.cli", "view", "--live", "--node", f"/{namespace}/come" if namespace else "/come",
        "--host", value("host"), "--port", value("port"), *["--open"] * (value("open") == "true"),
        *(["--max-points", value("max_points")] if value("max_points") else []),
    ]  # fmt: skip
    # it sets the Fast DDS profile for itself
    return [ExecuteProcess(cmd=command, name="view", output="screen")]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node to show"),
            DeclareLaunchArgument(
                "host", default_value=HOST, description="address to serve at; 0.0.0.0: anybody in the network can look"
            ),
            DeclareLaunchArgument("port", default_value=str(PORT), description="port of the page; 0: any free one"),
            DeclareLaunchArgument(
                "open", default_value="false", choices=EITHER, description="open the page in the default browser"
            ),
            DeclareLaunchArgument(
                "max_points", default_value="", description="points that are kept at most; empty: as the command has it"
            ),
            OpaqueFunction(function=view),
        ]
    )
