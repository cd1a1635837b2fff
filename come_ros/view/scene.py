"""Content in the scene of a viser server: the same nodes for the served page and for the page without a server."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import geometry
from ..errors import ComeRosError
from ..outputs.voxel_map import cell_keys
from ..types import F64
from .content import Cloud, Content, Path, limits_of, painted_cloud
from .keyframes import Shown, frusta_of

if TYPE_CHECKING:
    import viser

EXTRA = "pip install 'come_ros[view]' (viser) brings it"
STEPS = 24  # of the replay
LEVELS = ("surest third", "middle third", "least sure third")
PATH, ODOMETRY, TRUTH, LOOP, LANDMARK, CAMERA, CHOSEN = (
    (230, 80, 20), (60, 90, 200), (20, 150, 60), (200, 30, 160), (250, 200, 30), (70, 70, 70), (240, 120, 0),
)  # fmt: skip
STOP_S = 2.0
CAMERA_SHARE = 0.035  # length of a frustum in the size of the scene


class ViewError(ComeRosError):
    """The view cannot be shown: a package is missing, or the port is taken."""


def import_viser() -> Any:
    """The package viser. Raises ViewError, which says how to get it."""
    try:
        import viser
    except ImportError as error:
        raise ViewError(
            f"the 3D view needs the Python package viser, which is not installed ({error}): {EXTRA}"
        ) from error
    import rich

    rich.get_console().quiet = True  # viser prints its addresses there, and more; ours are printed by the command
    return viser


@contextlib.contextmanager
def viser_server(host: str, port: int) -> Iterator[viser.ViserServer]:
    """A running server, which stops at the end; port 0: any free one. It prints nothing. Raises ViewError."""
    package = import_viser()
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
    except OSError as error:
        raise ViewError(
            f"cannot serve at {host} port {port}: {error.strerror or error}: choose another --port, or an address of this machine as --host"
        ) from error
    server = package.ViserServer(host=host, port=port)
    try:
        yield server
    finally:
        stopping = threading.Thread(
            target=server.stop, daemon=True
        )  # a browser that does not answer would hold it for long
        stopping.start()
        stopping.join(STOP_S)


@dataclass(eq=False)
class Timed:
    """Nodes that are there from some moment on, in the order of time. `until` shows those up to a moment."""

    nodes: list[tuple[float, Any]] = field(default_factory=list)

    def add(self, time_s: float, node: Any) -> None:
        self.nodes.append((time_s, node))

    def until(self, time_s: float) -> None:
        """Changes only what differs, so that little is sent."""
        for start, node in self.nodes:
            if node.visible != (start <= time_s):
                node.visible = start <= time_s


def begin(server: Any, content: Content) -> None:
    """Up direction of the scene, and where to look from at first."""
    server.scene.set_up_direction(tuple(float(v) for v in content.up))
    position, target = first_look(content)
    server.initial_camera.position, server.initial_camera.look_at = position, target
    server.initial_camera.up = content.up


def first_look(content: Content) -> tuple[F64, F64]:
    """Where to look from at first, and at what: from behind and above the cameras, in the direction in which they look."""
    places = content.cloud.places if len(content.cloud) else np.zeros((1, 3), np.float32)
    target = np.median(places, axis=0).astype(np.float64)
    poses = [k.pose for k in content.keyframes]
    middle = np.mean([pose[:3, 3] for pose in poses], axis=0) if poses else target
    forward = target - middle
    forward -= (forward @ content.up) * content.up
    length = float(np.linalg.norm(forward))
    if length < 1e-6 * content.size:
        forward, length = np.cross(content.up, [1.0, 0.0, 0.0]) + np.cross(content.up, [0.0, 1.0, 0.0]), 1.0
    return target - content.size * (0.75 * forward / length - 0.45 * content.up), target


def point_size_of(content: Content) -> float:
    """That of points which nearly close a surface: the distance between neighbours, from how many points the cells of a grid hold."""
    if not len(content.cloud):
        return content.size / 300
    edge = content.size / 100
    cells = np.floor(content.cloud.places / edge).astype(np.int64)
    full = len(np.unique(cell_keys(cells.T)))
    return float(np.clip(0.8 * edge / math.sqrt(len(content.cloud) / full), content.size / 2000, content.size / 200))


def steps_of(content: Content, count: int = STEPS) -> F64:
    """(T + 1,) s, bounds of the steps of the replay."""
    return np.linspace(0.0, max(content.duration_s, 1e-6), count + 1)


def add_points(scene: Any, name: str, places: Any, colours: Any, size: float) -> Any:
    """A node of points. size: of each, in the unit of the scene."""
    return scene.add_point_cloud(
        name, places, colours, point_size=size, point_shape="circle", point_shading="flat", precision="float32"
    )


def add_line(scene: Any, name: str, places: F64, colour: tuple[int, int, int], width: float) -> Any:
    """A node with a line through places (n, 3). width: px."""
    pieces = np.stack([places[:-1], places[1:]], axis=1)
    return scene.add_line_segments(name, pieces, colour, thickness=width, thickness_units="screen")


def add_cloud(scene: Any, name: str, cloud: Cloud, mode: str, content: Content, size: float, bounds: F64) -> Timed:
    """Points below the node `name`, one node for each step of the replay, coloured by one of content.MODES."""
    out = Timed()
    colours = painted_cloud(cloud, mode, content.up, limits_of(content.cloud, content.up))
    step = np.clip(np.searchsorted(bounds, cloud.seen_s, side="right") - 1, 0, len(bounds) - 2)
    order = np.random.default_rng(0).permutation(len(cloud))  # so that the first ones of a node are spread evenly
    for number in range(len(bounds) - 1):
        rows = order[step[order] == number]
        if len(rows):
            node = add_points(scene, f"{name}/{number:02d}", cloud.places[rows], colours[rows], size)
            out.add(float(bounds[number]), node)
    return out


def levels_of(cloud: Cloud) -> list[Cloud]:
    """The cloud in three, by confidence; one where all have the same."""
    low, high = np.quantile(cloud.confidence, [1 / 3, 2 / 3]) if len(cloud) else (0.0, 0.0)
    parts = [cloud.confidence >= high, (cloud.confidence < high) & (cloud.confidence >= low), cloud.confidence < low]
    return [cloud.at(part) for part in parts]


def add_path(
    scene: Any, name: str, path: Path | None, colour: tuple[int, int, int], bounds: F64, width: float = 3.0
) -> Timed:
    """A line below the node `name`, in pieces for the steps of the replay. width: px."""
    out = Timed()
    if path is None or len(path.places) < 2:
        return out
    pieces = np.stack([path.places[:-1], path.places[1:]], axis=1)
    step = np.clip(np.searchsorted(bounds, path.times_s[1:], side="right") - 1, 0, len(bounds) - 2)
    for number in np.unique(step):
        node = scene.add_line_segments(
            f"{name}/{number:02d}", pieces[step == number], colour, thickness=width, thickness_units="screen"
        )
        out.add(float(bounds[number]), node)
    return out


def add_camera(scene: Any, name: str, shown: Shown, size: float, colour: tuple[int, int, int] = CAMERA) -> Any:
    """The frustum of a keyframe, with its picture."""
    return scene.add_camera_frustum(
        name, shown.fov, shown.aspect, scale=CAMERA_SHARE * size, thickness=1.5, thickness_units="screen", color=colour,
        image=shown.thumbnail, format="jpeg", jpeg_quality=75, wxyz=wxyz_of(shown.pose), position=shown.pose[:3, 3], cast_shadow=False,
        receive_shadow=False,
    )  # fmt: skip


def wxyz_of(pose: F64) -> F64:
    """Quaternion in viser's order."""
    x, y, z, w = geometry.quat_xyzw_from_matrix(pose)
    return np.array([w, x, y, z])


def add_fixed(scene: Any, content: Content) -> dict[str, Any]:
    """What the replay does not change: landmarks and loops. By name, as far as there are any."""
    out: dict[str, Any] = {}
    if len(content.landmarks):
        out["landmarks"] = scene.add_point_cloud(
            "/landmarks", content.landmarks.astype(np.float32), LANDMARK, point_size=point_size_of(content),
            point_shape="diamond", point_shading="flat", precision="float32",
        )  # fmt: skip
    if len(content.loops):
        out["loops"] = scene.add_line_segments("/loops", content.loops, LOOP, thickness=1.5, thickness_units="screen")
    return out


def add_cameras(scene: Any, keyframes: Sequence[Shown], size: float) -> Timed:
    """The frusta of `frusta_of`, below /cameras."""
    out = Timed()
    for number in frusta_of(keyframes, size):
        shown = keyframes[number]
        out.add(shown.time_s, add_camera(scene, f"/cameras/{number:03d}", shown, size))
    return out
