"""One subcommand of `come_ros` per file; all run on the same pipeline, and none imports ROS (cli.py finds them)."""
