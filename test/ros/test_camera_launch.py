"""The launch files that bring a camera's driver along, with stand-ins for the drivers: images reach the node, and it works.

A stand-in takes the arguments of the real driver and publishes where that does: usb_cam 0.8, realsense2_camera 4.56, zed_wrapper 5.1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch and launch_ros are not installed (they come with a ROS installation)")
pytest.importorskip("launch.launch_service", reason="this repository has a folder of that name")

from ros.live_node import wait_until
from ros.test_launch_file import interrupt, launch

DRIVER = """
import sys, time, rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import CameraInfo, Image
from come_ros.ros import messages
from ros.live_node import K, picture

rclpy.init()
node = rclpy.create_node("driver", automatically_declare_parameters_from_overrides=True)
given = {name: p.value for name, p in node.get_parameters_by_prefix("").items()}
node.get_logger().info(f"driver given {sorted(given.items())}")
width, height = given.get("image_width", 320), given.get("image_height", 240)
frame = given.get("frame_id", "driver_optical_frame")
image = node.create_publisher(Image, "image", 1)
info = node.create_publisher(CameraInfo, "camera_info", 1)
i = 0
def send():
    global i
    now = node.get_clock().now().nanoseconds
    head = messages.header(now, frame)
    info.publish(messages.camera_info_message(K, width, height, head))
    image.publish(messages.image_message(picture(i, width, height), head))
    i += 1
node.create_timer(0.1, send)
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
except Exception:  # a signal ends the context under what is being published
    if rclpy.ok():
        raise
rclpy.try_shutdown()
"""

REALSENSE = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration as Value
from launch_ros.actions import Node

def generate_launch_description():
    names = {"camera_namespace": "camera", "camera_name": "camera", "serial_no": "''", "rgb_camera.color_profile": "0,0,0",
             "enable_depth": "true", "log_level": "info", "config_file": "''"}
    topic = ["/", Value("camera_namespace"), "/", Value("camera_name"), "/color/"]
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=value) for name, value in names.items()),
        Node(package="realsense2_camera", executable="realsense2_camera_node", name=Value("camera_name"),
             namespace=Value("camera_namespace"), parameters=[{"profile": Value("rgb_camera.color_profile")}],
             remappings=[("image", [*topic, "image_raw"]), ("camera_info", [*topic, "camera_info"])], output="screen")])
"""

ZED = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration as Value
from launch_ros.actions import Node

def generate_launch_description():
    topic = ["/", Value("camera_name"), "/zed_node/rgb/color/rect/"]
    return LaunchDescription([
        DeclareLaunchArgument("camera_name", default_value="zed"), DeclareLaunchArgument("namespace", default_value=""),
        DeclareLaunchArgument("camera_model", choices=["zed", "zed2i"]), DeclareLaunchArgument("serial_number", default_value="0"),
        DeclareLaunchArgument("publish_tf", default_value="true", choices=["true", "false"]),
        Node(package="zed_wrapper", executable="zed_wrapper", name="zed_node", namespace=Value("namespace"),
             parameters=[{"publish_tf": Value("publish_tf")}],
             remappings=[("image", [*topic, "image"]), ("camera_info", [*topic, "camera_info"])], output="screen")])
"""


def install(prefix: Path, package: str, executable: str, script: str, **launch_files: str) -> None:
    """A package with one executable and some launch files, as colcon installs it."""
    marker = prefix / "share/ament_index/resource_index/packages" / package
    marker.touch()
    program = prefix / "lib" / package / executable
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    folder = prefix / "share" / package / "launch"
    folder.mkdir(parents=True)
    for name, text in launch_files.items():
        (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    ("file", "arguments", "topic", "said"),
    [
        ("usb_cam.launch.py", ("image_width:=160", "image_height:=120"), "/camera/image_raw", "('image_width', 160)"),
        ("realsense.launch.py", ("camera_name:=front",), "/camera/front/color/image_raw", "('profile', '640x480x30')"),
        (
            "multi_camera.launch.py",
            ("cameras:=left+right", "video_devices:=/dev/video0 /dev/video2"),
            "/left/image_raw, /right/image_raw",
            "('frame_id', '",
        ),
        ("zed.launch.py", ("camera_model:=zed2i", "publish_tf:=false"), "/zed/zed_node/rgb/color/rect/image", "False"),
    ],
)
def test_a_drivers_images_reach_the_node(file, arguments, topic, said, prefix: Path, peer, monkeypatch) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    # usb_cam calls it image_raw
    usb_cam = DRIVER.replace('Image, "image"', 'Image, "image_raw"')
    install(prefix, "usb_cam", "usb_cam_node_exe", usb_cam)
    install(prefix, "realsense2_camera", "realsense2_camera_node", DRIVER, rs_launch=REALSENSE)
    install(prefix, "zed_wrapper", "zed_wrapper", DRIVER, **{"zed_camera.launch": ZED})
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).resolve().parents[1]}:{os.environ.get('PYTHONPATH', '')}")
    own = prefix / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    keyframe: {mode: every}\n    diagnostics: {period: 0.2}\n")
    peer.listen("/diagnostics", DiagnosticArray)
    launched = launch(prefix, file, f"params_file:={own}", "backbone:=fake", "namespace:=robot", *arguments)
    try:
        wait_until(lambda: int(peer.status("come: input").get("used", 0)) > 3, what="frames that are used")
        status = peer.status("come: input")
        assert status["topic"] == topic and status["camera_info"] == "ok"
    finally:
        log = interrupt(launched)
    assert launched.returncode == 0, log
    assert said in log[log.index("driver given") :].splitlines()[0] and "Traceback" not in log, log
