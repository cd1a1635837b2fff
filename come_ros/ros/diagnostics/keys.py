"""Keys of /diagnostics, status by status, in the order of publication: key -> meaning. Imports no ROS.

The values come from statuses.py. The table of come_ros/ros/README.md is made of these; tests keep the three equal.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...drops import DROP_REASONS

INPUT: Mapping[str, str] = {
    "topic": "topic of the images; with several cameras all of them",
    "publishers": "number of publishers that the node sees; with several cameras the smallest",
    "qos": "reliability, durability and depth that the node requests",
    "encoding": "encoding of the last image",
    "size": "size of the last image, px",
    "converters": "what converts messages: cv_bridge, sensor_msgs_py or numpy",
    "fps_in": "images received per second, last 5 s",
    "received": "images received since configure = used + pending + all dropped",
    "used": "of these, published",
    "pending": "of these, waiting or in progress",
    **{f"dropped_{reason}": meaning for reason, meaning in DROP_REASONS.items()},
    "camera_info": "ok, or what is wrong with it",
    "depth": "with `known.depth`: ok, or why depth is not used",
    "odometry": "with `known.odometry`: ok, or why it is not used",
    "base_frame": "with `base_frame`: ok, or why the camera's pose on the robot is unknown",
    "extrinsics": "several cameras: ok, or how their images contradict the poses given for them",
    "sync": "several cameras: ok, or how many images had no partners, and which camera is missing",
    "clock": "system, sim, or sim without /clock",
}

INFERENCE: Mapping[str, str] = {
    "state": "unconfigured, loading, inactive, active, paused or finalized",
    "device": "the GPU's name, or cpu",
    "backbone": "the model",
    "accelerator": "token reduction",
    "kernels": "the parameter `kernels`",
    "weights": "file of the weights",
    "parameters": "number of parameters of the model, millions",
    "precision": "precision of the trunk",
    "heads_precision": "precision of the dense heads",
    "optimize": "none, graph or compile",
    "attention": "the attention kernel that was chosen",
    "unit": "unit of its lengths: metre, or its own",
    "takes": "inputs that it accepts",
    "encoder_cache": "by frame, or why the encoder's output is not kept for shared keyframes",
    "window": "keyframes of the next window, as the governor and memory allow",
    "overlap": "least number of keyframes shared with the previous window",
    "resolution": "size of the last depth image, px",
    "max_side": "longer side of the next images, px; 0 = the model's own",
    "merge_ratio": "`accelerator.ratio` as the governor and memory allow",
    "kept_ratio": "share of the tokens that the last window kept",
    "read_ratio": "share of the patches whose keys global attention read in the last window",
    "encoder_reused": "share of its frames whose encoder output was reused",
    "encoder_saved_ms": "time that this saved, ms",
    "stream_frames": "frames that a causal backbone has kept since its stream began, of `stream.most`; none = it sees whole windows",
    "stream_window": "keyframes in its local window, of `stream.window` as the governor allows",
    "stream_mib": "memory of its kept keys and values, of what it takes at most, MiB",
    "latency_ms_mean": "from the arrival of the frame that triggered a window to publication, last 10 s",
    "latency_ms_p95": "the same, 95th percentile",
    "latency_target_ms": "the parameter of that name; 0 = off",
    "governor_level": "steps taken to meet the target / all steps",
    "threads": "CPU threads of the model now, of those it may use",
    "slowdown": "how many times as long passes take as on an idle machine; nan = not known",
    "fps_out": "frames published per second, last 5 s",
    "vram_used_mb": "used memory of the GPU; nan on the CPU",
    "vram_free_mb": "free memory of the GPU; nan on the CPU",
    "oom_count": "windows that did not fit into memory",
    "ladder_step": "steps taken because of that / all steps",
}

OUTPUT: Mapping[str, str] = {
    "frame": "the world frame of odometry",
    "map_frame": "the world frame of path and map",
    "tf_mode": "forward, inverse or off; undecided before the first image",
    "last_stamp": "stamp of the last frame published, s",
    "age_ms_p95": "age of results when they are published, 95th percentile",
    "points": "number of points in the last cloud, or not subscribed",
    "align_residual": "misfit of the last window to the previous one: median relative difference of depth",
    "align_shared": "number of frames by which they were aligned",
    "refine_mode": "the parameter `refine.mode`",
    "refined": "share of the last window's keyframes whose pose and depth tracks vouch for",
    "refine_reason": "ok, or why it is not 1",
    "landmarks": "points that hold the last window together",
    "landmark_inliers": "their observations that fit, of all",
    "reprojection_px": "reprojection error of these, median, px; nan without any",
    "refine_ms": "time that the bundle of the last window took, ms; nan = none",
    "scale": "metres per unit of the lengths; nan = unknown",
    "scale_source": "none, fixed or model",
    "intrinsics_source": "camera_info, or predicted",
    "resets": "new worlds (map and odometry origin) since configure",
    "map_keyframes": "keyframes that the map's graph keeps",
    "map_loaded": "keyframes of the saved map that `map.load` names; none = there is none",
    "map_located": "yes, and how long that took; no, and what was tried; none = there is no saved map",
    "map_scale": "units of the saved map by those of odometry; nan = not known",
    "loops_offered": "pairs of views that were compared, since the world began",
    "loops_closed": "of these, that showed the same place and moved the map",
    "loops_refused": "why the others did not",
    "pose_hz": "poses of images published per second, last 5 s; 0 with odometry.rate keyframe",
    "pose_latency_ms": "from the arrival of an image to its pose, last 5 s, median",
    "pose_latency_ms_p95": "the same, 95th percentile",
    "pose_cost_ms": "time to track and locate an image, median",
    "pose_points": "points with a known position in the last image",
    "pose_inliers": "number of these that fit its pose",
    "pose_error_px": "their reprojection error, median, px",
    "pose_priority": "raised: tracking goes before the model and other processes; normal: not permitted (CAP_SYS_NICE, `ulimit -e`)",
    "pose_lost": "images since configure whose pose was only extrapolated",
}

STATUSES: Mapping[str, Mapping[str, str]] = {"input": INPUT, "inference": INFERENCE, "output": OUTPUT}
"""Name of the status after `come: ` -> its keys."""
