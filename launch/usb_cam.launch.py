"""A webcam and the node: usb_cam publishes /camera/image_raw. Takes every argument of come.launch.py as well."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, ThisLaunchFileDir
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    kinds = {"video_device": str, "image_width": int, "image_height": int, "framerate": float, "pixel_format": str}
    return LaunchDescription(
        [
            DeclareLaunchArgument("video_device", default_value="/dev/video0", description="the webcam"),
            DeclareLaunchArgument("image_width", default_value="640", description="px"),
            DeclareLaunchArgument("image_height", default_value="480", description="px"),
            DeclareLaunchArgument("framerate", default_value="30.0", description="images per second"),
            DeclareLaunchArgument(
                "pixel_format",
                default_value="mjpeg2rgb",
                description="mjpeg2rgb, yuyv2rgb, or another one of usb_cam's",
            ),
            DeclareLaunchArgument(
                "camera_info_url",
                default_value="",
                description="file:///path/of/calibration.yaml; empty: the intrinsics are predicted",
            ),
            # first, because it sets the Fast DDS profile that lets the driver's images through
            IncludeLaunchDescription(PythonLaunchDescriptionSource([ThisLaunchFileDir(), "/come.launch.py"])),
            Node(
                package="usb_cam",
                executable="usb_cam_node_exe",
                namespace="camera",
                name="usb_cam",
                parameters=[
                    {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, kind in kinds.items()},
                    {
                        "camera_info_url": ParameterValue(LaunchConfiguration("camera_info_url"), value_type=str),
                        "frame_id": "camera_optical_frame",
                    },
                ],
                output="screen",
                emulate_tty=True,
            ),
        ]
    )
