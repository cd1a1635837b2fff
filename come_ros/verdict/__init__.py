"""Whether a result can be used, from what the program itself knows about it. Imports neither torch nor ROS."""
