"""All parameters of come_ros as one checked value. The node, the tools and the tests read the same dataclasses.

The groups of config_groups.py are nested, which gives dotted names (`window.size`). `parameters()` lists them all; `Config.from_flat`
builds a checked Config; config_text.py reads one from files and command lines. A third-party plug-in brings its own parameters as a
frozen dataclass `Parameters`: they are called `accelerator.params.NAME` and `backbone_params.NAME`, and exist while that plug-in is
chosen.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config_groups import (
    SCALE_SOURCES,
    AcceleratorParameters,
    Cloud,
    Cov,
    Diagnostics,
    Input,
    Keyframe,
    Known,
    Loop,
    Map,
    OdometryParameters,
    Oom,
    Refine,
    Scale,
    ShutterParameters,
    StreamParameters,
    Sync,
    Tf,
    WindowParameters,
)
from .errors import ConfigError
from .parameter import OWN, Parameter, declared, did_you_mean, parameter
from .plugins import BACKBONES

MOST_CAMERAS = 8
MIN_SIDE = 112  # px, of input.max_side
LEAST_VOXEL = 1e-3


@dataclass(frozen=True)
class Config:
    """All parameters of come_ros. Immutable; `replace` and `from_flat` give checked copies."""

    device: str = parameter("auto", "auto (CUDA if usable, else the CPU), cpu, or cuda:N")
    precision: str = parameter(
        "auto", "auto: bf16 on a GPU (fp16 before Ampere), fp32 on the CPU", choices=("auto", "bf16", "fp16", "fp32")
    )
    kernels: str = parameter(
        "auto",
        "token merging on a GPU; auto: cupy where CuPy can compile the kernels, else torch; cupy: CuPy or an error",
        choices=("auto", "cupy", "torch"),
    )
    attention: str = parameter(
        "auto",
        "attention kernel on a GPU; auto: the fastest one, timed at start",
        choices=("auto", "flash", "cudnn", "efficient"),
    )
    heads_precision: str = parameter(
        "fp32",
        "precision of the dense heads; bf16: faster on a GPU, depth differs in the third digit",
        choices=("fp32", "bf16"),
    )
    optimize: str = parameter(
        "none",
        "graph: record CUDA graphs for each shape of window; compile: also fuse blocks by torch.compile, slow at first",
        choices=("none", "graph", "compile"),
    )
    backbone: str = parameter(
        "vggt",
        "model family; fake: a geometric stand-in for tests",
        plugins=BACKBONES,
    )
    backbone_params: Any = field(default=None, metadata=OWN)
    weights: str = parameter("", "checkpoint file (.safetensors, or .pt); empty = the bundled small model of vggt")
    threads: int = parameter(
        0, "CPU threads of the model; 0 = auto: all cores, or fewer where other processes use them", low=0, high=256
    )
    image_transport: str = parameter(
        "raw",
        "raw: topic image (sensor_msgs/Image); compressed: image/compressed",
        choices=("raw", "compressed"),
        node_only=True,
    )
    cameras: str = parameter(
        "",
        "names of several cameras, joined by + or as a list: topics <name>/image and <name>/camera_info; empty = one, on image",
        joined=True,
    )
    rectify: str = parameter(
        "auto",
        "remove lens distortion; auto: if camera_info describes it and the topic's name does not contain rect; on: always; off: never",
        choices=("auto", "on", "off"),
    )
    backpressure: str = parameter(
        "latest",
        "latest: process the newest keyframes whenever the model is free; all: process every keyframe in full windows, as come_ros bag",
        choices=("latest", "all"),
        node_only=True,
    )
    max_data_age: float = parameter(
        2.0,
        "drop results that come later than this after the arrival of the frame that triggered them, s; 0 = off",
        low=0.0,
        high=60.0,
        dynamic=True,
        node_only=True,
    )
    latency_target_ms: float = parameter(
        0.0,
        "target for the time from a frame to its result, ms: the node raises merging, then shrinks window, then images; 0 = off",
        low=0.0,
        high=10_000.0,
        dynamic=True,
        node_only=True,
    )
    on_time_jump: str = parameter(
        "reset",
        "when stamps go back by more than 0.1 s: reset starts a new map and odometry, keep_pose continues, ignore drops the frames",
        choices=("reset", "keep_pose", "ignore"),
        dynamic=True,
    )
    odom_frame: str = parameter(
        "visual_odom", "world frame of odometry; level, with its origin at the first frame that is used"
    )
    map_frame: str = parameter(
        "visual_map",
        "world frame of ~/path and ~/map_points, in which loops are closed; its edge to odom_frame is published, unless odom_frame has "
        "another parent; the same name as odom_frame: no loops",
    )
    base_frame: str = parameter(
        "",
        "robot frame for odometry and TF, if TF or extrinsics give the camera's pose on the robot; empty = the camera's own frame",
        node_only=True,
    )
    extrinsics: str = parameter(
        "",
        "'camera_frame: x y z qx qy qz qw; ...' of optical frames in base_frame, instead of TF; empty = use TF",
        node_only=True,
    )
    camera_optical_frame: str = parameter(
        "camera_optical_frame", "frame_id used when an image's header has none", node_only=True
    )
    path_max_size: int = parameter(2000, "number of latest poses in ~/path", low=1, high=100_000, dynamic=True)
    autostart: bool = parameter(
        True, "configure and activate at start; false: leave both to a lifecycle manager", node_only=True
    )
    executor: str = parameter(
        "auto",
        "what runs the node's callbacks: rclpy's SingleThreadedExecutor, or as an experiment its EventsExecutor (Kilted or newer; "
        "measured to be no faster); auto: the better one as measured, which is single_threaded so far",
        choices=("auto", "single_threaded", "events"),
        node_only=True,
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
    shutter: ShutterParameters = field(default_factory=ShutterParameters)
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
        if self.map.load and not self.closes_loops:
            raise ConfigError(
                f"map.load is {self.map.load!r}, but there is no frame for the map: give map_frame another name than odom_frame, and leave "
                f"tf.mode at auto"
            )
        if self.map.mode == "localize" and not self.map.load:
            raise ConfigError(
                "map.mode is localize, but map.load is empty: set map.load to the folder of a saved map, or map.mode to build"
            )
        parse_range(self.input.range)
        self._check_cameras()
        self._check_scale()
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

    def _check_scale(self) -> None:
        mode = self.scale.mode
        if mode == "height" and self.scale.height <= 0:
            raise ConfigError(
                f"scale.mode is height, but scale.height is {self.scale.height:g}: set it to the height of the camera over the floor, in "
                f"metres, above 0 and up to 100"
            )
        if mode == "rig" and not self.cameras:
            raise ConfigError(
                "scale.mode is rig, but cameras is empty: name two cameras or more, such as left+right, or choose another scale.mode"
            )
        if mode in ("depth", "odometry") and self.cameras:
            raise ConfigError(
                f"scale.mode is {mode}, which is for one camera, but cameras is {self.cameras!r}: set scale.mode to rig, or leave "
                f"cameras empty"
            )
        if mode in ("depth", "odometry") and not self.known.metric:
            raise ConfigError(
                f"scale.mode is {mode}, but known.metric is false, so the topic {mode} is not in metres: set known.metric to true, or "
                f"scale.mode to none"
            )

    @property
    def scale_sources(self) -> tuple[str, ...]:
        """What may measure metres, of SCALE_SOURCES and in their order."""
        if self.scale.mode != "auto":
            return tuple(name for name in SCALE_SOURCES if name == self.scale.mode)
        metric = self.known.metric
        given = {
            "depth": self.known.depth and metric, "rig": bool(self.cameras), "odometry": self.known.odometry and metric,
            "height": self.scale.height > 0,
        }  # fmt: skip
        return tuple(name for name in SCALE_SOURCES if given[name])

    @property
    def reads_depth(self) -> bool:
        """Whether frames need the depth of the topic depth."""
        return self.known.depth or "depth" in self.scale_sources

    @property
    def reads_odometry(self) -> bool:
        """Whether frames need the poses of the topic odometry."""
        return self.known.odometry or "odometry" in self.scale_sources

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Of several cameras, the first one leads; empty where there is one camera."""
        return tuple(self.cameras.split("+")) if self.cameras else ()

    @property
    def closes_loops(self) -> bool:
        """Whether places are recognised: loops or a saved map are asked for, and there is a frame for the map."""
        return self._finds_places and self._map_may_move

    @property
    def has_map_frame(self) -> bool:
        """Whether the map has a frame of its own, in which places are recognised and lengths become metres."""
        return self._map_may_move and (self._finds_places or bool(self.scale_sources))

    @property
    def _finds_places(self) -> bool:
        return self.loop.enabled or bool(self.map.load)

    @property
    def _map_may_move(self) -> bool:
        """Whether there is a frame for the map, apart from that of odometry, and TF that relates the two."""
        return self.map_frame != self.odom_frame and self.tf.mode != "off"

    @property
    def localizes(self) -> bool:
        """Whether the saved map is only to be found again, and not to change."""
        return bool(self.map.load) and self.map.mode == "localize"

    @property
    def world_frame(self) -> str:
        """The frame of path and map."""
        return self.map_frame if self.has_map_frame else self.odom_frame

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

    def without_effect(self) -> list[str]:
        """Of each parameter that was changed although another one keeps it from being read: both, in words. What a third-party plug-in
        reads is not known, so the parameters that it shares with ours are never listed."""
        found, known = [], {p.name: p for p in declared(Config)}
        for p in self.parameters():
            if p.only is None or self.get(p.name) == p.default:
                continue
            other, values = p.only
            chosen = self.get(other)
            each = str(chosen).split("+") if known[other].joined else [chosen]
            plugins = known[other].plugins
            foreign = plugins is not None and any(v not in plugins.own for v in each)
            if not foreign and not any(v in values for v in each):
                wanted = " or ".join(str(v) for v in values)
                found.append(f"{p.name} has no effect while {other} is {chosen}, only with {wanted}")
        return found

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
