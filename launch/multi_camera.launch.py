"""Several cameras and the node, all in one window; on request webcams as well. Takes every argument of come.launch.py.

ros2 launch come_ros multi_camera.launch.py cameras:=front+left+right base_frame:=base_link
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, ThisLaunchFileDir
from launch_ros.actions import Node


def drivers(context: LaunchContext) -> list[Node]:
    """A webcam for each camera, if there are to be any."""
    cameras = LaunchConfiguration("cameras").perform(context).split("+")
    devices = LaunchConfiguration("video_devices").perform(context).split()
    if devices and len(devices) != len(cameras):
        raise RuntimeError(
            f"video_devices names {len(devices)} webcams, cameras {len(cameras)} ({', '.join(cameras)}): one for each, or none"
        )
    return [
        Node(
            package="usb_cam",
            executable="usb_cam_node_exe",
            namespace=camera,
            name="usb_cam",
            parameters=[{"video_device": device, "pixel_format": "mjpeg2rgb", "frame_id": f"{camera}_optical_frame"}],
            output="screen",
            emulate_tty=True,
        )
        for camera, device in zip(cameras, devices, strict=False)
    ]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "cameras", description="names with + between them, as left+right; the first one leads (required)"
            ),
            DeclareLaunchArgument(
                "image_topic",
                default_value="/*/image_raw",
                description="images of each camera, with * for its name; camera_info in the same namespace",
            ),
            DeclareLaunchArgument(
                "video_devices",
                default_value="",
                description="webcams to start for them, as '/dev/video0 /dev/video2'; empty: the cameras run already",
            ),
            # first, because it sets the Fast DDS profile that lets the drivers' images through
            IncludeLaunchDescription(PythonLaunchDescriptionSource([ThisLaunchFileDir(), "/come.launch.py"])),
            OpaqueFunction(function=drivers),
        ]
    )
