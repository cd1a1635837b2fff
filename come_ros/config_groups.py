"""The groups of parameters, such as window.*: name, type, default, range and meaning of each; config.py has those of no group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .parameter import OWN, parameter
from .plugins import ACCELERATORS

SCALE_SOURCES = "depth", "rig", "odometry", "height"
"""what may measure metres, the most trusted first"""


@dataclass(frozen=True)
class AcceleratorParameters:
    name: str = parameter(
        "none",
        "token reduction method; two that work together are joined by +, as in come+good_token_hunting",
        joined=True,
        plugins=ACCELERATORS,
    )
    ratio: float = parameter(
        0.5,
        "share that is merged, dropped or not read, 0 = nothing; come, random: of the groups; good_token_hunting, subscene: of the frames; "
        "regime: of the layers; others: of the patches",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    group: str = parameter(
        "3x3",
        "come, random: patches (rows x columns) that become one token",
        choices=("2x2", "3x3", "1x4"),
        dynamic=True,
        only=("accelerator.name", ("come", "random")),
    )
    rule: str = parameter(
        "static",
        "come, random: which groups are merged; static: as many of group in every frame; v1: the first release's, of 4 patches in a row; "
        "v2: the second release's, all of group below one quantile of the window",
        choices=("static", "v1", "v2"),
        dynamic=True,
        only=("accelerator.name", ("come", "random")),
    )
    mode: str = parameter(
        "fused",
        "come, random, tome: fused merges once for the rest of the pass; per_layer merges and splits around every attention and MLP",
        choices=("fused", "per_layer"),
        only=("accelerator.name", ("come", "random", "tome")),
    )
    schedule: str = parameter(
        "constant",
        "tome: merge the same number in every block, or fewer and fewer",
        choices=("constant", "decreasing"),
        only=("accelerator.name", ("tome",)),
    )
    edge_weight: float = parameter(
        0.0,
        "come: weight of a group's contrast, which protects it from merging, relative to its confidence, which has weight 1",
        low=0.0,
        high=100.0,
        dynamic=True,
        only=("accelerator.name", ("come",)),
    )
    merge_budget: float = parameter(
        0.3,
        "pace: share of all patches that is merged into the kept ones instead of dropped",
        low=0.0,
        high=1.0,
        dynamic=True,
        only=("accelerator.name", ("pace",)),
    )
    pace: str = parameter(
        "",
        "pace: file of `come_ros train-pace`; empty = pace_NAME.safetensors next to the weights NAME.safetensors",
        only=("accelerator.name", ("pace",)),
    )
    frames: int = parameter(
        0,
        "good_token_hunting: number of frames whose keys are read, whatever the ratio; 0 = the share 1 - ratio of the window",
        low=0,
        high=1000,
        dynamic=True,
        only=("accelerator.name", ("good_token_hunting",)),
    )
    stride: int = parameter(
        2,
        "good_token_hunting, regime: spacing of the patches that some layers read",
        low=1,
        high=8,
        dynamic=True,
        only=("accelerator.name", ("good_token_hunting", "regime")),
    )
    phases: str = parameter(
        "shifted",
        "regime: whether frames that look alike read other patches each, or all the same ones",
        choices=("shifted", "same"),
        dynamic=True,
        only=("accelerator.name", ("regime",)),
    )
    subscenes: str = parameter(
        "looks",
        "subscene: which frames read each other: those that look alike, consecutive ones, or random ones",
        choices=("looks", "time", "random"),
        dynamic=True,
        only=("accelerator.name", ("subscene",)),
    )
    layer_plan: str = parameter(
        "",
        "good_token_hunting: file of `come_ros calibrate`; empty = NAME.attention.json next to the weights NAME.safetensors, else the "
        "paper's plan, scaled for fewer than 18 global layers",
        only=("accelerator.name", ("good_token_hunting",)),
    )
    predictor: str = parameter(
        "",
        "come: predictor file of `come_ros distill`; empty = come_NAME.safetensors next to the weights NAME.safetensors",
        only=("accelerator.name", ("come",)),
    )
    params: Any = field(default=None, metadata=OWN)


@dataclass(frozen=True)
class Input:
    reliability: str = parameter(
        "best_effort",
        "QoS of the image subscription; best_effort matches every publisher; auto: reliable if all publishers are",
        choices=("best_effort", "reliable", "auto"),
        node_only=True,
    )
    depth: int = parameter(5, "QoS history depth of the image subscription", low=1, high=200, node_only=True)
    max_side: int = parameter(
        0,
        "longer side of the model's image, px, at least 112; 0 = the model's own size",
        low=0,
        high=1036,
        dynamic=True,
    )
    range: str = parameter(
        "auto",
        "values of images with more than 8 bits that the model sees as 0 .. 255; auto: the range that the stream uses; full: 0 .. 65535; "
        "or 'LOW HIGH'",
    )


@dataclass(frozen=True)
class Known:
    intrinsics: bool = parameter(
        True, "pass the intrinsics of camera_info to a backbone that accepts them (mapanything)", dynamic=True
    )
    depth: bool = parameter(
        False,
        "pass depth from the topic depth, along z and registered to the image, to a backbone that accepts it; and see scale.mode",
    )
    odometry: bool = parameter(
        False,
        "pass poses from the topic odometry to the bundle, and to a backbone that accepts them; and see scale.mode",
    )
    metric: bool = parameter(True, "depth and odometry are in metres")
    tolerance: float = parameter(
        0.05,
        "largest difference of stamps between an image and its depth or odometry, s",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    base_from_camera: str = parameter(
        "",
        "'x y z qx qy qz qw' of the camera's optical frame in odometry's child frame; empty = the two are the same",
    )


@dataclass(frozen=True)
class WindowParameters:
    size: int = parameter(8, "number of keyframes reconstructed together", low=2, high=64, dynamic=True)
    overlap: int = parameter(
        0,
        "least number of keyframes shared with the previous window; 0 = half of window.size, else smaller than it",
        low=0,
        high=63,
        dynamic=True,
    )
    reuse: bool = parameter(True, "reuse the encoder's output for shared keyframes", dynamic=True)
    anchors: int = parameter(
        0,
        "number of newest shared keyframes whose depth is predicted again, to keep the scale; 0 = all",
        low=0,
        high=63,
        dynamic=True,
    )

    @property
    def shared(self) -> int:
        """`overlap`, or half of the window where that is not set."""
        return self.overlap or self.size // 2


@dataclass(frozen=True)
class StreamParameters:
    window: int = parameter(
        64,
        "causal backbones (lingbot): number of newest keyframes whose patches each new frame reads",
        low=1,
        high=512,
        dynamic=True,
        only=("backbone", ("lingbot",)),
    )
    keyframe_interval: int = parameter(
        1,
        "causal backbones: every n-th frame is kept for later ones to read",
        low=1,
        high=100,
        dynamic=True,
        only=("backbone", ("lingbot",)),
    )
    most: int = parameter(
        320,
        "causal backbones: number of kept frames after which the stream restarts with the frames of the window; above 320 quality falls",
        low=2,
        high=1024,
        dynamic=True,
        only=("backbone", ("lingbot",)),
    )
    reduce: str = parameter(
        "none",
        "causal backbones: how older keyframes of the local window keep fewer keys; groups: merge neighbours, the most similar first; "
        "repeats: merge patches into newer ones that they resemble; evict: drop the least attended; random: merge random groups",
        choices=("none", "groups", "repeats", "evict", "random"),
        dynamic=True,
        only=("backbone", ("lingbot",)),
    )
    reduce_ratio: float = parameter(
        0.5,
        "causal backbones: share of its patches that a keyframe gives up",
        low=0.0,
        high=1.0,
        dynamic=True,
        only=("stream.reduce", ("groups", "repeats", "evict", "random")),
    )
    whole: int = parameter(
        8,
        "causal backbones: number of newest keyframes that keep all their keys",
        low=1,
        high=512,
        dynamic=True,
        only=("stream.reduce", ("groups", "repeats", "evict", "random")),
    )
    group: str = parameter(
        "2x2",
        "causal backbones: patches (rows x columns) that become one key",
        choices=("2x2", "3x3"),
        dynamic=True,
        only=("stream.reduce", ("groups", "random")),
    )
    memory: int = parameter(
        0,
        "causal backbones: most memory for kept keys and values, MiB; the local window gets shorter to fit; 0 = as the others allow",
        low=0,
        high=1_000_000,
        dynamic=True,
        only=("backbone", ("lingbot",)),
    )


@dataclass(frozen=True)
class Keyframe:
    mode: str = parameter(
        "flow",
        "flow: enough image motion; time: every min_interval; every: each frame",
        choices=("every", "time", "flow"),
        dynamic=True,
    )
    min_flow: float = parameter(
        6.0,
        "median image motion that makes a keyframe, px on a 320-px thumbnail",
        low=0.0,
        high=100.0,
        dynamic=True,
        only=("keyframe.mode", ("flow",)),
    )
    min_interval: float = parameter(
        0.1,
        "keyframes are at least this far apart, s",
        low=0.0,
        high=10.0,
        dynamic=True,
        only=("keyframe.mode", ("flow", "time")),
    )
    max_interval: float = parameter(
        1.0,
        "a keyframe is forced after this long, s",
        low=0.0,
        high=10.0,
        dynamic=True,
        only=("keyframe.mode", ("flow",)),
    )


@dataclass(frozen=True)
class Cloud:
    frame: str = parameter(
        "camera", "frame of ~/points: camera (optical) or odom", choices=("camera", "odom"), dynamic=True
    )
    organized: bool = parameter(
        False, "publish one point per pixel, NaN where invalid, instead of valid points only", dynamic=True
    )
    stride: int = parameter(1, "use every n-th pixel of each row and column", low=1, high=16, dynamic=True)
    min_confidence: float = parameter(
        0.0,
        "pixels of less confidence are left out of cloud, map and depth image; 0 = off; vggt: 1 and more, less where tracked points "
        "contradict its depth",
        low=0.0,
        high=1000.0,
        dynamic=True,
    )
    conf_percentile: float = parameter(
        0.0,
        "share of each frame's pixels, the least confident, that is left out, %; cuts dark and small obstacles out first",
        low=0.0,
        high=99.0,
        dynamic=True,
    )
    max_range: float = parameter(
        0.0,
        "depth beyond this is left out of the cloud and +inf in the depth image, m; 0 = off",
        low=0.0,
        high=1000.0,
        dynamic=True,
    )
    edge_filter: bool = parameter(True, "leave out pixels on depth edges (flying points)", dynamic=True)


@dataclass(frozen=True)
class Map:
    enabled: bool = parameter(
        False, "keep a map of all frames: ~/map_points and ~/save_map", dynamic=True, node_only=True
    )
    voxel: float = parameter(
        0.0,
        "edge of a voxel, which holds one point, m, or, while lengths are in the model's own unit, as a share of the first frame's median "
        "depth; 0 = auto: 0.05 m, or a share of 0.01; a change empties the map",
        low=0.0,
        high=10.0,
        dynamic=True,
    )
    max_points: int = parameter(
        2_000_000,
        "most points in the map; beyond it, those seen longest ago are removed",
        low=1000,
        high=20_000_000,
        dynamic=True,
    )
    rate: float = parameter(
        0.5,
        "most messages on ~/map_points per second; sent only if the map has changed",
        low=0.01,
        high=10.0,
        dynamic=True,
        node_only=True,
    )
    max_keyframes: int = parameter(
        2000,
        "most keyframes that the map's graph keeps, some 60 kB each, 170 kB with a map to save; beyond it, every second one of the older "
        "half is removed",
        low=10,
        high=100_000,
    )
    load: str = parameter(
        "",
        "folder of a saved map to start in: the node finds its place there, as with loop.enabled; empty = a new map",
    )
    mode: str = parameter(
        "build",
        "with map.load; build: the map grows; localize: the map stays as it was saved, and only the pose in it is published",
        choices=("build", "localize"),
    )
    save_dir: str = parameter(
        "~/.ros/come_ros",
        "~/save_map writes into a new folder below this one, named by the time",
        dynamic=True,
        node_only=True,
    )


@dataclass(frozen=True)
class Loop:
    enabled: bool = parameter(
        True,
        "detect when the camera returns to a place, and remove drift from map_frame, ~/path and the map; odometry does not change; "
        "runs in a process of low priority; always on in come_ros bag",
        node_only=True,
    )


@dataclass(frozen=True)
class Scale:
    mode: str = parameter(
        "auto",
        "where metres come from; auto: every source that is set up (known.depth, cameras, known.odometry, scale.height), else the model's "
        "own unit; none: the model's own unit; fixed: scale.fixed; depth, rig, odometry, height: that source, whose topic is then read",
        choices=("auto", "none", "fixed", *SCALE_SOURCES),
    )
    fixed: float = parameter(
        1.0,
        "metres per unit of the model when scale.mode is fixed; a change takes effect with the next world",
        low=1e-6,
        high=1e6,
        dynamic=True,
        only=("scale.mode", ("fixed",)),
    )
    height: float = parameter(
        0.0,
        "height of the camera over the floor, m, for scale.mode height or auto; 0 = unknown",
        low=0.0,
        high=100.0,
        only=("scale.mode", ("auto", "height")),
    )
    min_motion: float = parameter(
        0.3,
        "shortest displacement by the topic odometry that is compared with the camera's, m",
        low=0.01,
        high=100.0,
        dynamic=True,
        only=("scale.mode", ("auto", "odometry")),
    )
    max_sigma: float = parameter(
        0.1,
        "the scale is known once the standard deviation of its logarithm is at most this; 0.1: within 20 % in 95 of 100 cases",
        low=0.001,
        high=1.0,
        dynamic=True,
        only=("scale.mode", ("auto", *SCALE_SOURCES)),
    )
    restart: bool = parameter(
        False,
        "begin a new world, whose odometry is in metres, once a scale is known that was unknown when the world began; false: then only the "
        "map is in metres",
        dynamic=True,
        only=("scale.mode", ("auto", *SCALE_SOURCES)),
    )


@dataclass(frozen=True)
class Refine:
    mode: str = parameter(
        "bundle",
        "bundle: refine poses and depth with points that are tracked from image to image; none: publish the network's result",
        choices=("bundle", "none"),
    )


@dataclass(frozen=True)
class ShutterParameters:
    mode: str = parameter(
        "auto",
        "auto: estimate from tracked points how long the camera reads an image out, row by row; global: all rows are exposed at once; "
        "rolling: shutter.readout_ms",
        choices=("auto", "global", "rolling"),
    )
    readout_ms: float = parameter(
        0.0,
        "time from the first row of an image to the last one, ms; negative for a camera that is mounted upside down",
        low=-100.0,
        high=100.0,
        only=("shutter.mode", ("rolling",)),
    )

    @property
    def readout_s(self) -> float | None:
        """s; None if it has to be estimated."""
        return {"auto": None, "global": 0.0, "rolling": 1e-3 * self.readout_ms}[self.mode]


@dataclass(frozen=True)
class OdometryParameters:
    rate: str = parameter(
        "image",
        "image: ~/odometry and TF for every image, without waiting for the model; keyframe: for keyframes, with their window",
        choices=("image", "keyframe"),
    )


@dataclass(frozen=True)
class Cov:
    position_floor: float = parameter(1e-6, "least variance of position, m2", low=1e-12, high=1e6, dynamic=True)
    rotation_floor: float = parameter(1e-6, "least variance of rotation, rad2", low=1e-12, high=1e6, dynamic=True)


@dataclass(frozen=True)
class Tf:
    mode: str = parameter(
        "auto",
        "auto: forward unless the moving frame already has a parent, then inverse; forward: odom->moving; inverse: moving->odom; off",
        choices=("auto", "forward", "inverse", "off"),
    )
    lookup_timeout: float = parameter(
        0.2,
        "longest wait of the first image for the transform from base_frame to the camera, s",
        low=0.0,
        high=5.0,
        node_only=True,
    )


@dataclass(frozen=True)
class Diagnostics:
    period: float = parameter(
        1.0, "seconds between messages on /diagnostics", low=0.1, high=60.0, dynamic=True, node_only=True
    )


@dataclass(frozen=True)
class Oom:
    policy: str = parameter(
        "ladder",
        "when a window does not fit into memory; ladder: retry with fewer frames, smaller images, more merging; error: drop it",
        choices=("ladder", "error"),
    )


@dataclass(frozen=True)
class Sync:
    slop: float = parameter(
        0.02,
        "with several cameras: largest difference of stamps within one set of images, s",
        low=0.0,
        high=0.5,
        node_only=True,
    )
