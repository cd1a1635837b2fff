"""Reads what come_ros has made, without ROS and without a model: results of `come_ros bag` and `come_ros demo`, saved maps, recordings.

results = open_results("out")
for frame in results.frames():
    frame.depth, frame.confidence, frame.image, frame.intrinsics, frame.world_from_camera
results.points(), results.trajectory, results.unit, results.loops, results.truth()
"""

from .results import ResultFrame, Results, open_results

__all__ = ["ResultFrame", "Results", "open_results"]
