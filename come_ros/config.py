"""All parameters of come_ros: name, type, default, range and meaning. The node, the tools and the tests read the same dataclasses.

Nested dataclasses give dotted names (`window.size`). `parameters()` lists them all; `Config.from_flat` builds a checked Config;
config_text.py reads one from files and command lines. A third-party plug-in brings its own parameters as a frozen dataclass
`Parameters`: they are called `accelerator.params.NAME` and `backbone_params.NAME`, and exist while that plug-in is chosen.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError
from .parameter import OWN, Parameter, declared, did_you_mean
from .parameter import parameter as _param
from .plugins import ACCELERATORS, BACKBONES

MOST_CAMERAS = 8
MIN_SIDE = 112  # px, of input.max_side
LEAST_VOXEL = 1e-3


@dataclass(frozen=True)
class AcceleratorParameters:
    name: str = _param(
        "none",
        "token reduction method; two that work together are joined by +, as in come+good_token_hunting",
        joined=True,
        plugins=ACCELERATORS,
    )
    ratio: float = _param(
        0.5,
        "share that is merged, dropped or not read, 0 = nothing; come: of the groups; good_token_hunting: of the frames; others: of the "
        "patches",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    group: str = _param(
        "3x3", "come: patches (rows x columns) that become one token", choices=("2x2", "3x3", "1x4"), dynamic=True
    )
    rule: str = _param(
        "static",
        "come: which groups are merged; static: as many of group in every frame; v1: the first release's, of 4 patches in a row; v2: the "
        "second release's, all of group below one quantile of the window",
        choices=("static", "v1", "v2"),
        dynamic=True,
    )
    mode: str = _param(
        "fused",
        "come, tome: fused merges once for the rest of the pass; per_layer merges and splits around every attention and MLP",
        choices=("fused", "per_layer"),
    )
    schedule: str = _param(
        "constant", "tome: merge the same number in every block, or fewer and fewer", choices=("constant", "decreasing")
    )
    edge_weight: float = _param(
        0.0,
        "come: weight of a group's contrast, which protects it from merging, relative to its confidence, which has weight 1",
        low=0.0,
        high=100.0,
        dynamic=True,
    )
    merge_budget: float = _param(
        0.3,
        "pace: share of all patches that is merged into the kept ones instead of dropped",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    pace: str = _param("", "pace: file of `come_ros train-pace`; empty = the one bundled with the weights")
    frames: int = _param(
        0,
        "good_token_hunting: number of frames whose keys are read, whatever the ratio; 0 = the share 1 - ratio of the window",
        low=0,
        high=1000,
        dynamic=True,
    )
    stride: int = _param(
        2, "good_token_hunting: spacing of the patches that the middle layers read", low=1, high=8, dynamic=True
    )
    layer_plan: str = _param(
        "",
        "good_token_hunting: file of `come_ros calibrate`; empty = the one next to the weights, else the paper's, scaled for "
        "fewer than 18 global layers",
    )
    predictor: str = _param("", "come: predictor file of `come_ros distill`; empty = the one bundled with the weights")
    params: Any = field(default=None, metadata=OWN)


@dataclass(frozen=True)
class Input:
    reliability: str = _param(
        "best_effort",
        "QoS of the image subscription; best_effort matches every publisher; auto: reliable if all publishers are",
        choices=("best_effort", "reliable", "auto"),
        node_only=True,
    )
    depth: int = _param(5, "QoS history depth of the image subscription", low=1, high=200, node_only=True)
    max_side: int = _param(
        0,
        "longer side of the model's image, px, from 112 on; 0 = the model's own size",
        low=0,
        high=1036,
        dynamic=True,
    )
    range: str = _param(
        "auto",
        "values of images with more than 8 bits that the model sees as 0 .. 255; auto: the range that the stream uses; full: 0 .. 65535; "
        "or 'LOW HIGH'",
    )


@dataclass(frozen=True)
class Known:
    intrinsics: bool = _param(
        True, "pass the intrinsics of camera_info to a backbone that accepts them (mapanything)", dynamic=True
    )
    depth: bool = _param(
        False, "pass depth from the topic depth, along z and registered to the image, to a backbone that accepts it"
    )
    odometry: bool = _param(False, "pass poses from the topic odometry to a backbone that accepts them")
    metric: bool = _param(True, "depth and odometry are in metres", dynamic=True)
    tolerance: float = _param(
        0.05,
        "largest difference of stamps between an image and its depth or odometry, s",
        low=0.0,
        high=1.0,
        dynamic=True,
        node_only=True,
    )
    base_from_camera: str = _param(
        "",
        "'x y z qx qy qz qw' of the camera's optical frame in odometry's child frame; empty = the two are the same",
        node_only=True,
    )


@dataclass(frozen=True)
class WindowParameters:
    size: int = _param(8, "number of keyframes reconstructed together", low=2, high=64, dynamic=True)
    overlap: int = _param(
        0,
        "least number of keyframes shared with the previous window; 0 = half of window.size, else smaller than it",
        low=0,
        high=63,
        dynamic=True,
    )
    reuse: bool = _param(True, "reuse the encoder's output for shared keyframes", dynamic=True)
    anchors: int = _param(
        0,
        "number of shared keyframes, the newest, whose depth is predicted again to carry the scale on; 0 = all",
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
    window: int = _param(
        64,
        "causal backbones (lingbot): number of newest keyframes whose patches each new frame reads",
        low=1,
        high=512,
        dynamic=True,
    )
    keyframe_interval: int = _param(
        1, "causal backbones: every n-th frame is kept for later ones to read", low=1, high=100, dynamic=True
    )
    most: int = _param(
        320,
        "causal backbones: the stream begins again, with the frames of the window, after so many kept frames; above 320 quality falls",
        low=2,
        high=1024,
        dynamic=True,
    )
    reduce: str = _param(
        "none",
        "causal backbones: how older keyframes of the local window give up keys; groups: neighbours are merged, those most alike first; "
        "repeats: patches join the newer ones that they resemble; evict: the least attended are dropped; random: any groups are merged",
        choices=("none", "groups", "repeats", "evict", "random"),
        dynamic=True,
    )
    reduce_ratio: float = _param(
        0.5, "causal backbones: share of its patches that a keyframe gives up", low=0.0, high=1.0, dynamic=True
    )
    whole: int = _param(
        8, "causal backbones: number of newest keyframes that keep all their keys", low=1, high=512, dynamic=True
    )
    group: str = _param(
        "2x2", "causal backbones: patches (rows x columns) that become one key", choices=("2x2", "3x3"), dynamic=True
    )
    memory: int = _param(
        0,
        "causal backbones: most memory for kept keys and values, MiB; the local window gets shorter to fit; 0 = as the others allow",
        low=0,
        high=1_000_000,
        dynamic=True,
    )


@dataclass(frozen=True)
class Keyframe:
    mode: str = _param(
        "flow",
        "flow: enough image motion; time: every min_interval; every: each frame",
        choices=("every", "time", "flow"),
        dynamic=True,
    )
    min_flow: float = _param(
        6.0, "median image motion that makes a keyframe, px on a 320-px thumbnail", low=0.0, high=100.0, dynamic=True
    )
    min_interval: float = _param(0.1, "keyframes are at least this far apart, s", low=0.0, high=10.0, dynamic=True)
    max_interval: float = _param(1.0, "a keyframe is forced after this long, s", low=0.0, high=10.0, dynamic=True)


@dataclass(frozen=True)
class Cloud:
    frame: str = _param(
        "camera", "frame of ~/points: camera (optical) or odom", choices=("camera", "odom"), dynamic=True
    )
    organized: bool = _param(
        False, "publish one point per pixel, NaN where invalid, instead of valid points only", dynamic=True
    )
    stride: int = _param(1, "use every n-th pixel of each row and column", low=1, high=16, dynamic=True)
    min_confidence: float = _param(
        0.0,
        "pixels of less confidence are left out of cloud, map and depth image; 0 = off; vggt: 1 and more, less where tracked points "
        "contradict its depth",
        low=0.0,
        high=1000.0,
        dynamic=True,
    )
    conf_percentile: float = _param(
        0.0,
        "share of each frame's pixels, the least confident, that is left out, %; cuts dark and small obstacles out first",
        low=0.0,
        high=99.0,
        dynamic=True,
    )
    max_range: float = _param(
        0.0,
        "depth beyond this is left out of the cloud and +inf in the depth image, m; 0 = off",
        low=0.0,
        high=1000.0,
        dynamic=True,
    )
    edge_filter: bool = _param(True, "leave out pixels on depth edges (flying points)", dynamic=True)


@dataclass(frozen=True)
class Map:
    enabled: bool = _param(False, "keep a map of all frames: ~/map_points and ~/save_map", dynamic=True, node_only=True)
    voxel: float = _param(
        0.0,
        "edge of a voxel, which holds one point, m, or, while lengths are in the model's own unit, as a share of the first frame's median "
        "depth; 0 = auto: 0.05 m, or a share of 0.01; a change empties the map",
        low=0.0,
        high=10.0,
        dynamic=True,
    )
    max_points: int = _param(
        2_000_000,
        "most points in the map; beyond it, those seen longest ago are removed",
        low=1000,
        high=20_000_000,
        dynamic=True,
    )
    rate: float = _param(
        0.5,
        "most messages on ~/map_points per second; sent only if the map has changed",
        low=0.01,
        high=10.0,
        dynamic=True,
        node_only=True,
    )
    max_keyframes: int = _param(
        2000,
        "most keyframes that the map's graph keeps, some 60 kB each; beyond it, every second one of the older half is removed",
        low=10,
        high=100_000,
    )
    save_dir: str = _param(
        "~/.ros/come_ros",
        "~/save_map writes into a new folder below this one, named by the time",
        dynamic=True,
        node_only=True,
    )


@dataclass(frozen=True)
class Loop:
    enabled: bool = _param(
        False,
        "notice when the camera is back where it was: map_frame, ~/path and the map lose the drift, odometry stays as it is; takes time of "
        "the CPU that runs the model; come_ros bag always does it",
        node_only=True,
    )


@dataclass(frozen=True)
class Scale:
    mode: str = _param(
        "none", "none: keep the model's own scale; fixed: multiply by scale.fixed", choices=("none", "fixed")
    )
    fixed: float = _param(1.0, "metres per model unit when scale.mode is fixed", low=1e-6, high=1e6, dynamic=True)


@dataclass(frozen=True)
class Refine:
    mode: str = _param(
        "bundle",
        "bundle: poses and depth are held against points that are followed from image to image; none: as the network has them",
        choices=("bundle", "none"),
    )


@dataclass(frozen=True)
class OdometryParameters:
    rate: str = _param(
        "image",
        "image: ~/odometry and TF of every image, as soon as it is there; keyframe: of keyframes, when their window comes",
        choices=("image", "keyframe"),
    )


@dataclass(frozen=True)
class Cov:
    position_floor: float = _param(1e-6, "least variance of position, m2", low=1e-12, high=1e6, dynamic=True)
    rotation_floor: float = _param(1e-6, "least variance of rotation, rad2", low=1e-12, high=1e6, dynamic=True)


@dataclass(frozen=True)
class Tf:
    mode: str = _param(
        "auto",
        "auto: forward unless the moving frame already has a parent, then inverse; forward: odom->moving; inverse: moving->odom; off",
        choices=("auto", "forward", "inverse", "off"),
    )
    lookup_timeout: float = _param(
        0.2,
        "longest wait of the first image for the transform from base_frame to the camera, s",
        low=0.0,
        high=5.0,
        node_only=True,
    )


@dataclass(frozen=True)
class Diagnostics:
    period: float = _param(
        1.0, "seconds between messages on /diagnostics", low=0.1, high=60.0, dynamic=True, node_only=True
    )


@dataclass(frozen=True)
class Oom:
    policy: str = _param(
        "ladder",
        "when a window does not fit into memory; ladder: retry with fewer frames, smaller images, more merging; error: drop it",
        choices=("ladder", "error"),
    )


@dataclass(frozen=True)
class Sync:
    slop: float = _param(
        0.02,
        "with several cameras: largest difference of stamps within one set of images, s",
        low=0.0,
        high=0.5,
        node_only=True,
    )


@dataclass(frozen=True)
class Config:
    """All parameters of come_ros. Immutable; `replace` and `from_flat` give checked copies."""

    device: str = _param("auto", "auto (CUDA if usable, else the CPU), cpu, or cuda:N")
    precision: str = _param(
        "auto", "auto: bf16 on a GPU (fp16 before Ampere), fp32 on the CPU", choices=("auto", "bf16", "fp16", "fp32")
    )
    kernels: str = _param(
        "auto",
        "token merging on a GPU; auto: cupy where CuPy can compile the kernels, else torch; cupy: CuPy or an error",
        choices=("auto", "cupy", "torch"),
    )
    attention: str = _param(
        "auto",
        "attention kernel on a GPU; auto: the fastest one, timed at start",
        choices=("auto", "flash", "cudnn", "efficient"),
    )
    heads_precision: str = _param(
        "fp32",
        "precision of the dense heads; bf16: faster on a GPU, depth differs in the third digit",
        choices=("fp32", "bf16"),
    )
    optimize: str = _param(
        "none",
        "graph: record CUDA graphs for each shape of window; compile: also fuse blocks by torch.compile, slow at first",
        choices=("none", "graph", "compile"),
    )
    backbone: str = _param(
        "vggt",
        "model family; fake: a geometric stand-in for tests",
        plugins=BACKBONES,
    )
    backbone_params: Any = field(default=None, metadata=OWN)
    weights: str = _param("", "checkpoint file (.safetensors, or .pt); empty = the bundled small model of vggt")
    threads: int = _param(
        0, "CPU threads of the model; 0 = auto: all cores, or fewer where other processes use them", low=0, high=256
    )
    image_transport: str = _param(
        "raw",
        "raw: topic image (sensor_msgs/Image); compressed: image/compressed",
        choices=("raw", "compressed"),
        node_only=True,
    )
    cameras: str = _param(
        "",
        "names of several cameras, joined by + or as a list: topics <name>/image and <name>/camera_info; empty = one, on image",
        joined=True,
    )
    rectify: str = _param(
        "auto",
        "remove lens distortion; auto: if camera_info describes it and the topic's name does not contain rect; on: always; off: never",
        choices=("auto", "on", "off"),
    )
    backpressure: str = _param(
        "latest",
        "latest: process the newest keyframes whenever the model is free; all: process every keyframe in full windows, as come_ros bag",
        choices=("latest", "all"),
        node_only=True,
    )
    max_data_age: float = _param(
        2.0,
        "drop results that come later than this after the arrival of the frame that triggered them, s; 0 = off",
        low=0.0,
        high=60.0,
        dynamic=True,
        node_only=True,
    )
    latency_target_ms: float = _param(
        0.0,
        "target for the time from a frame to its result, ms: the node raises merging, then shrinks window, then images; 0 = off",
        low=0.0,
        high=10_000.0,
        dynamic=True,
        node_only=True,
    )
    on_time_jump: str = _param(
        "reset",
        "when stamps go back by more than 0.1 s: reset starts a new map and odometry, keep_pose continues, ignore drops the frames",
        choices=("reset", "keep_pose", "ignore"),
        dynamic=True,
    )
    odom_frame: str = _param(
        "visual_odom", "world frame of odometry; level, with its origin at the first frame that is used"
    )
    map_frame: str = _param(
        "visual_map",
        "world frame of ~/path and ~/map_points, in which loops are closed; its edge to odom_frame is published, unless odom_frame has "
        "another parent; the same name as odom_frame: no loops",
    )
    base_frame: str = _param(
        "",
        "robot frame for odometry and TF, if TF or extrinsics give the camera's pose on the robot; empty = the camera's own frame",
        node_only=True,
    )
    extrinsics: str = _param(
        "",
        "'camera_frame: x y z qx qy qz qw; ...' of optical frames in base_frame, instead of TF; empty = use TF",
        node_only=True,
    )
    camera_optical_frame: str = _param(
        "camera_optical_frame", "frame_id used when an image's header has none", node_only=True
    )
    path_max_size: int = _param(2000, "number of latest poses in ~/path", low=1, high=100_000, dynamic=True)
    autostart: bool = _param(
        True, "configure and activate at start; false: leave both to a lifecycle manager", node_only=True
    )
    accelerator: AcceleratorParameters = field(default_factory=AcceleratorParameters)
    input: Input = field(default_factory=Input)
    known: Known = field(default_factory=Known)
    window: WindowParameters = field(default_factory=WindowParameters)
    stream: StreamParameters = field(default_factory=StreamParameters)
    keyframe: Keyframe = field(default_factory=Keyframe)
    cloud: Cloud = field(default_factory=Cloud)
    map: Map = field(default_factory=Map)
    sync: Sync = field(default_factory=Sync)
    refine: Refine = field(default_factory=Refine)
    odometry: OdometryParameters = field(default_factory=OdometryParameters)
    loop: Loop = field(default_factory=Loop)
    scale: Scale = field(default_factory=Scale)
    cov: Cov = field(default_factory=Cov)
    tf: Tf = field(default_factory=Tf)
    oom: Oom = field(default_factory=Oom)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the parameter, its value, the allowed range and the fix."""
        for p in parameters():
            p.check(self.get(p.name))
        for prefix, kind in plugged({name: self.get(name) for name in CHOOSING}).items():
            if not isinstance(self.get(prefix[:-1]), kind):
                raise ConfigError(
                    f"{prefix[:-1]} holds no {kind.__qualname__}: build the configuration with Config.from_flat"
                )
            for p in declared(kind, prefix):
                p.check(self.get(p.name))
        if self.window.overlap >= self.window.size:
            raise ConfigError(
                f"window.overlap is {self.window.overlap}, but must be smaller than window.size ({self.window.size}): "
                f"set window.overlap to 1..{self.window.size - 1}, or to 0 for half of it, or raise window.size"
            )
        if 0 < self.map.voxel < LEAST_VOXEL:
            raise ConfigError(
                f"map.voxel is {self.map.voxel}, but must be 0 (auto) or {LEAST_VOXEL:g} .. 10: a finer map does not fit into memory"
            )
        if self.stream.most <= self.window.size:
            raise ConfigError(
                f"stream.most is {self.stream.most}, but must be larger than window.size ({self.window.size}), which a stream begins with: "
                f"raise it, or lower window.size"
            )
        parse_range(self.input.range)
        self._check_cameras()
        if 0 < self.input.max_side < MIN_SIDE:
            raise ConfigError(
                f"input.max_side is {self.input.max_side}, but must be 0 (the model's own size) or {MIN_SIDE} .. 1036: "
                f"smaller images hold too few patches"
            )
        if self.keyframe.min_interval > self.keyframe.max_interval:
            raise ConfigError(
                f"keyframe.min_interval ({self.keyframe.min_interval}) is above keyframe.max_interval "
                f"({self.keyframe.max_interval}): lower the first or raise the second"
            )

    def _check_cameras(self) -> None:
        names = self.camera_names
        good = {name for name in names if re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)}
        if names and not 2 <= len(good) == len(names) <= MOST_CAMERAS:
            raise ConfigError(
                f"cameras is {self.cameras!r}, but must be 2 .. {MOST_CAMERAS} different names of letters, digits and _, such as "
                f"left+right, or empty: for one camera, remap `image` to its topic"
            )
        if names and (self.known.depth or self.known.odometry):
            raise ConfigError(
                "known.depth and known.odometry are for one camera, but cameras names several: leave one of the two out"
            )

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Of several cameras, the first one leads; empty where there is one camera."""
        return tuple(self.cameras.split("+")) if self.cameras else ()

    @property
    def closes_loops(self) -> bool:
        """Whether there is a frame for the map, apart from that of odometry, and TF that relates the two."""
        return self.loop.enabled and self.map_frame != self.odom_frame and self.tf.mode != "off"

    @property
    def world_frame(self) -> str:
        """The frame of path and map."""
        return self.map_frame if self.closes_loops else self.odom_frame

    def get(self, name: str) -> Any:
        """Value of the dotted parameter `name`."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, then those that the chosen plug-ins declare as their own."""
        yield from declared(Config)
        for prefix, kind in plugged({name: self.get(name) for name in CHOOSING}).items():
            yield from declared(kind, prefix)

    def to_flat(self) -> dict[str, Any]:
        """Dotted name -> value, in declaration order."""
        return {p.name: self.get(p.name) for p in self.parameters()}

    def replace(self, **flat: Any) -> Config:
        """A checked copy with some dotted parameters changed: `config.replace(**{"window.size": 4})`. Where another plug-in is chosen,
        the parameters of the one before are dropped."""
        values = self.to_flat()
        for name, registry in CHOOSING.items():
            if flat.get(name, values[name]) != values[name]:
                values = {n: v for n, v in values.items() if not n.startswith(registry.parameters)}
        return Config.from_flat({**values, **flat})

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> Config:
        """Config from dotted names; those left out keep their default. Raises ConfigError on unknown names, and on plug-ins that cannot
        be used."""
        known = {p.name: p for p in parameters()}
        own = plugged(values)
        for prefix, kind in own.items():
            known |= {p.name: p for p in declared(kind, prefix)}
        nested: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                for choosing, registry in CHOOSING.items():
                    if name.startswith(registry.parameters) and registry.parameters not in own:
                        chosen = values.get(choosing, known[choosing].default)
                        raise ConfigError(
                            f"unknown parameter {name!r}: {choosing} is {chosen}, which has no parameters of its own; choose the "
                            f"{registry.kind} that has them, or leave it out"
                        )
                raise ConfigError(f"unknown parameter {name!r}{did_you_mean(name, known)}")
            value = known[name].coerce(value)
            group, _, leaf = name.rpartition(".")
            (nested.setdefault(group, {}) if group else top)[leaf or name] = value
        for prefix, kind in own.items():
            holder, _, leaf = prefix[:-1].rpartition(".")
            (nested.setdefault(holder, {}) if holder else top)[leaf] = kind(**nested.pop(prefix[:-1], {}))
        for f in dataclasses.fields(Config):
            if f.name in nested:
                top[f.name] = f.default_factory(**nested[f.name])  # type: ignore[misc, operator]
        return Config(**top)


def parameters() -> Iterator[Parameter]:
    """All parameters of come_ros, in declaration order."""
    yield from declared(Config)


CHOOSING = {p.name: p.plugins for p in parameters() if p.plugins is not None}
"""name of a parameter that chooses a plug-in -> where the plug-ins are registered"""


def plugged(values: Mapping[str, Any]) -> dict[str, type]:
    """Prefix -> dataclass of the own parameters of the plug-ins that `values`, by dotted names, choose."""
    found: dict[str, type] = {}
    for p in parameters():
        if (registry := p.plugins) is None:
            continue
        for name in str(p.coerce(values.get(p.name, p.default))).split("+"):
            if registry.allows(name) and (kind := registry.parameters_of(name)) is not None:
                found.setdefault(registry.parameters, kind)
    return found


def parse_range(setting: str) -> tuple[float, float] | None:
    """(low, high) of the parameter input.range, None for auto. Raises ConfigError."""
    if setting == "auto":
        return None
    if setting == "full":
        return 0.0, 65535.0
    try:
        low, high = (float(word) for word in setting.replace(",", " ").split())
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            f"input.range is {setting!r}, but must be auto, full (0 .. 65535), or two numbers LOW HIGH such as '0 4095', LOW below HIGH"
        )
    return low, high
