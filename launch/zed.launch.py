"""A ZED and the node: zed_wrapper (5.1 or newer) publishes the rectified left images. Takes every argument of come.launch.py as
well."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, ThisLaunchFileDir
from launch_ros.substitutions import FindPackageShare

EITHER = ["true", "false"]
NAME = LaunchConfiguration("camera_name")


def generate_launch_description() -> LaunchDescription:
    driver = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("zed_wrapper"), "/launch/zed_camera.launch.py"]),
        launch_arguments={
            "camera_model": LaunchConfiguration("camera_model"),
            "camera_name": NAME,
            "serial_number": LaunchConfiguration("serial_number"),
            "publish_tf": LaunchConfiguration("publish_tf"),
            "namespace": "",  # of the driver; ours would reach it
        }.items(),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("camera_model", description="zed, zedm, zed2, zed2i, zedx, zedxm, ... (required)"),
            DeclareLaunchArgument(
                "camera_name", default_value="zed", description="first part of its topics and frames"
            ),
            DeclareLaunchArgument("serial_number", default_value="0", description="which camera; 0: any"),
            DeclareLaunchArgument(
                "publish_tf",
                default_value="true",
                choices=EITHER,
                description="the camera's own odometry on /tf; visual_odom is a leaf then",
            ),
            DeclareLaunchArgument(
                "image_topic",
                default_value=["/", NAME, "/zed_node/rgb/color/rect/image"],
                description="its images; before 5.1: /<camera_name>/zed_node/rgb/image_rect_color",
            ),
            # first, because it sets the Fast DDS profile that lets the driver's images through
            IncludeLaunchDescription(PythonLaunchDescriptionSource([ThisLaunchFileDir(), "/come.launch.py"])),
            GroupAction([driver]),
        ]
    )
