"""Starts the node, and RViz on request: topics come by remapping, all else by parameters."""

from __future__ import annotations

from typing import Any

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from come_ros.config import parameters
from come_ros.ros.environment import large_message_profile

SHARED_CONFIG = PathJoinSubstitution([FindPackageShare("come_ros"), "config"])
EITHER = ["true", "false"]
(BACKBONES,) = (p.range_text() for p in parameters() if p.name == "backbone")


def start(context: LaunchContext) -> list[Node]:
    """The nodes, once the arguments have their values."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    # an argument wins over the params_file, which wins over the defaults in the code: what is left empty must set nothing
    given: dict[str, Any] = {
        name: ParameterValue(value(name), value_type=str)
        for name in ("image_transport", "cameras", "odom_frame", "base_frame", "backbone", "device", "weights")
        if value(name)
    }
    if value("autostart"):
        given["autostart"] = value("autostart") == "true"
    time = {"use_sim_time": value("use_sim_time") == "true"}
    # several cameras: * in a topic stands for the name of each
    cameras = value("cameras").split("+") if value("cameras") else []
    remappings = []
    for ours, topic in (("image", value("image_topic")), ("camera_info", value("camera_info_topic"))):
        if topic:
            remappings += [(f"{name}/{ours}", topic.replace("*", name)) for name in cameras] or [(ours, topic)]
    common: dict[str, Any] = {
        "namespace": value("namespace"), "remappings": remappings, "output": "screen", "emulate_tty": True
    }  # fmt: skip
    nodes = [
        Node(
            package="come_ros",
            executable="come_node",
            name="come",
            parameters=[*filter(None, [value("params_file")]), given, time],
            ros_arguments=["--log-level", value("log_level")],
            **common,
        )
    ]
    if value("rviz") == "true":
        view = PathJoinSubstitution([SHARED_CONFIG, "come.rviz"])
        frame = ["-f", value("fixed_frame")] if value("fixed_frame") else []
        nodes.append(
            Node(package="rviz2", executable="rviz2", arguments=["-d", view, *frame], parameters=[time], **common)
        )
    return nodes


def generate_launch_description() -> LaunchDescription:
    default_file = PathJoinSubstitution([SHARED_CONFIG, "come.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and of RViz"),
            DeclareLaunchArgument("image_topic", default_value="/camera/image_raw", description="the camera's images"),
            DeclareLaunchArgument(
                "camera_info_topic",
                default_value="",
                description="its CameraInfo; empty: camera_info in the namespace of the images",
            ),
            DeclareLaunchArgument(
                "image_transport",
                default_value="",
                choices=["", "raw", "compressed"],
                description="compressed: images on <image_topic>/compressed; empty: as the params_file says",
            ),
            DeclareLaunchArgument(
                "cameras",
                default_value="",
                description="names of several cameras, as left+right, with * for the name in image_topic; empty: as the params_file says",
            ),
            DeclareLaunchArgument(
                "params_file", default_value=default_file, description="parameters of the node; arguments win over it"
            ),
            DeclareLaunchArgument(
                "odom_frame", default_value="", description="world frame of odometry; empty: as the params_file says"
            ),
            DeclareLaunchArgument(
                "base_frame",
                default_value="",
                description="frame of the robot, such as base_link, if TF leads from it to the camera; empty: as the params_file says",
            ),
            DeclareLaunchArgument(
                "backbone",
                default_value="",
                description=f"model family: {BACKBONES}; empty: as the params_file says",
            ),
            DeclareLaunchArgument(
                "device", default_value="", description="auto, cpu or cuda:N; empty: as the params_file says"
            ),
            DeclareLaunchArgument(
                "weights", default_value="", description="checkpoint file; empty: as the params_file says"
            ),
            DeclareLaunchArgument(
                "autostart",
                default_value="",
                choices=["", *EITHER],
                description="configure and activate at start; empty: as the params_file says",
            ),
            DeclareLaunchArgument(
                "use_sim_time", default_value="false", choices=EITHER, description="take the time from /clock"
            ),
            DeclareLaunchArgument("rviz", default_value="false", choices=EITHER, description="start RViz as well"),
            DeclareLaunchArgument(
                "fixed_frame",
                default_value="",
                description="RViz's fixed frame, such as visual_map to see loops closed; empty: visual_odom",
            ),
            DeclareLaunchArgument(
                "log_level",
                default_value="info",
                choices=["debug", "info", "warn", "error", "fatal"],
                description="log level of the node",
            ),
            # images and clouds do not fit into Fast DDS's own shared memory; a profile that the user has set is left alone
            *(SetEnvironmentVariable(name, path) for name, path in large_message_profile().items()),
            OpaqueFunction(function=start),
        ]
    )
