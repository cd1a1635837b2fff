"""The subcommands of `come_ros`, one per module; all run the same pipeline, and none imports ROS (cli.py finds them)."""
