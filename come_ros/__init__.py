"""come_ros: dense geometry from one uncalibrated camera, in real time, for ROS 2 robots."""

__version__ = "0.2.0"
