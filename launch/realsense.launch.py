"""A RealSense and the node: realsense2_camera (4.55 or newer) publishes the colour images. Takes every argument of come.launch.py
as well."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, ThisLaunchFileDir
from launch_ros.substitutions import FindPackageShare

EITHER = ["true", "false"]
NAMESPACE, NAME = LaunchConfiguration("camera_namespace"), LaunchConfiguration("camera_name")


def generate_launch_description() -> LaunchDescription:
    driver = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("realsense2_camera"), "/launch/rs_launch.py"]),
        launch_arguments={
            "camera_namespace": NAMESPACE,
            "camera_name": NAME,
            "serial_no": LaunchConfiguration("serial_no"),
            "rgb_camera.color_profile": LaunchConfiguration("color_profile"),
            "enable_depth": LaunchConfiguration("enable_depth"),
        }.items(),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("camera_namespace", default_value="camera", description="first part of its topics"),
            DeclareLaunchArgument(
                "camera_name", default_value="camera", description="second part, and beginning of its frames"
            ),
            DeclareLaunchArgument(
                "serial_no", default_value="''", description="which camera, as '_123456'; empty quotes: any"
            ),
            DeclareLaunchArgument(
                "color_profile", default_value="640x480x30", description="width x height x images per second"
            ),
            DeclareLaunchArgument(
                "enable_depth",
                default_value="false",
                choices=EITHER,
                description="its own depth, which the node does without",
            ),
            DeclareLaunchArgument(
                "image_topic",
                default_value=["/", NAMESPACE, "/", NAME, "/color/image_raw"],
                description="colour images",
            ),
            DeclareLaunchArgument(
                "base_frame",
                default_value=[NAME, "_link"],
                description="root of the driver's frames, or of your robot's",
            ),
            # first, because it sets the Fast DDS profile that lets the driver's images through
            IncludeLaunchDescription(PythonLaunchDescriptionSource([ThisLaunchFileDir(), "/come.launch.py"])),
            GroupAction([driver]),
        ]
    )
