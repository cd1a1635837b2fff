"""The ROS 2 node: the only place of the package that imports rclpy and messages."""
