"""What /diagnostics says, status by status, in the order in which it is said: key -> meaning. Imports no ROS.

The values come from diagnostics.py. The README's table is made of these; tests hold the three together.
"""

from __future__ import annotations

from collections.abc import Mapping

from .counters import DROP_REASONS

INPUT: Mapping[str, str] = {
    "topic": "of the images; with several cameras all of them",
    "publishers": "how many of its publishers reach us; with several cameras the least",
    "qos": "reliability, durability and depth that we ask for",
    "encoding": "of the last image",
    "size": "of the last image, px",
    "converters": "who converts messages: cv_bridge, sensor_msgs_py or numpy",
    "fps_in": "images that came in per second, last 5 s",
    "received": "images that came in since configure = used + pending + all that is dropped",
    "used": "of these, published",
    "pending": "of these, waiting or being worked on",
    **{f"dropped_{reason}": meaning for reason, meaning in DROP_REASONS.items()},
    "camera_info": "ok, or what is wrong with it",
    "depth": "with `known.depth`: ok, or why depth is not used",
    "odometry": "with `known.odometry`: ok, or why it is not used",
    "base_frame": "with `base_frame`: ok, or why the camera's place on the robot is not known",
    "extrinsics": "several cameras: ok, or how their images contradict the places they are said to have",
    "sync": "several cameras: ok, or how many images had no partners, and who is waited for",
    "clock": "system, sim, or sim without /clock",
}

INFERENCE: Mapping[str, str] = {
    "state": "unconfigured, loading, inactive, active, paused or finalized",
    "device": "the GPU's name, or cpu",
    "backbone": "the model",
    "accelerator": "token reduction",
    "kernels": "as asked for",
    "weights": "where they are from",
    "parameters": "of the model, millions",
    "precision": "of its trunk",
    "heads_precision": "of its dense heads",
    "optimize": "none, graph or compile",
    "attention": "the attention kernel that was chosen",
    "unit": "of its lengths: metre, or its own",
    "takes": "what it can be given",
    "encoder_cache": "by frame, or why nothing is kept of shared keyframes",
    "window": "keyframes of the next window, as the governor and memory allow",
    "overlap": "shared with the window before, at least",
    "resolution": "of the last depth image, px",
    "max_side": "longer side of the next images, px; 0 = the model's own",
    "merge_ratio": "`accelerator.ratio` as the governor and memory allow",
    "kept_ratio": "share of the tokens that the last window kept",
    "read_ratio": "share of the patches whose keys global attention read in the last window",
    "encoder_reused": "share of its frames that did not go through the encoder again",
    "encoder_saved_ms": "what that saved",
    "latency_ms_mean": "from the arrival of the frame that triggered a window to publication, last 10 s",
    "latency_ms_p95": "the same, 95th percentile",
    "latency_target_ms": "what was asked for; 0 = nothing",
    "governor_level": "steps taken to be in time, of all there are",
    "threads": "CPU threads of the model now, of those it may use",
    "slowdown": "how many times as long passes take as on an idle machine; nan = not known",
    "fps_out": "frames published per second, last 5 s",
    "vram_used_mb": "memory of the GPU; nan on the CPU",
    "vram_free_mb": "the same",
    "oom_count": "windows that did not fit into memory",
    "ladder_step": "steps taken because of that, of all there are",
}

OUTPUT: Mapping[str, str] = {
    "frame": "the world frame of odometry",
    "tf_mode": "forward, inverse or off; undecided before the first image",
    "last_stamp": "of the last frame published, s",
    "age_ms_p95": "how old results are when they are published, 95th percentile",
    "points": "in the last cloud, or not subscribed",
    "align_residual": "how badly the last window fits the one before: median relative difference of depth",
    "align_shared": "by how many frames they were laid together",
    "scale": "metres per unit of the lengths; nan = unknown",
    "scale_source": "none, fixed or model",
    "intrinsics_source": "camera_info, or predicted",
    "resets": "new worlds (map and odometry origin) since configure",
    "pose_hz": "poses of images published per second, last 5 s; 0 with odometry.rate keyframe",
    "pose_latency_ms": "from the arrival of an image to its pose, last 5 s, median",
    "pose_latency_ms_p95": "the same, 95th percentile",
    "pose_cost_ms": "what tracking and locating an image take, median",
    "pose_points": "points with a known place in the last image",
    "pose_inliers": "how many of them fit its pose",
    "pose_error_px": "how well those fit, median",
    "pose_lost": "images since configure whose pose was only carried on",
}

STATUSES: Mapping[str, Mapping[str, str]] = {"input": INPUT, "inference": INFERENCE, "output": OUTPUT}
"""Name of the status after `come: ` -> its keys."""
