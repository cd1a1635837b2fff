"""A stand-in for ROS's sensor_msgs_py."""
