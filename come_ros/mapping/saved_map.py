"""A map as a folder: its keyframes with poses, depth, place descriptors, features and thumbnails, and the graph between them.

map.json: format, version, the model that made the place descriptors, the unit, and the checksum of the other file.
keyframes.safetensors: arrays. Reading them executes no code.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..errors import MapError, OutputError
from ..files import shown, whole_file, write_text
from ..geometry import is_finite_pose
from .graph import DIMENSIONS, Edges, Similarities
from .keyframe import Keyframe, Thumbnail
from .view import View

FORMAT, VERSION = "come_ros map", 1
HEAD, ARRAYS = "map.json", "keyframes.safetensors"
FOLDER = "map"
"""its usual name inside a folder of results"""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class SavedMap:
    """keyframes: K, session by session, each in the order of time. nodes: K similarities map_from_keyframe. edges: between the keyframes;
    those of loops are switchable. places: identifies the model that made the place descriptors, see Backbone.places. metres: per unit of
    the map, NaN if unknown. sigma: of the logarithm of `metres`, NaN if unknown. voxel: edge of the voxels of its points, in its unit, NaN
    if unknown. path: where it was read from, for messages."""

    keyframes: tuple[Keyframe, ...]
    nodes: Similarities
    edges: Edges
    places: str
    metres: float = math.nan
    sigma: float = math.nan
    voxel: float = math.nan
    path: str = ""

    @property
    def sessions(self) -> int:
        """Number of runs that built it."""
        return 1 + max((k.session for k in self.keyframes), default=-1)


def write_map(saved: SavedMap, folder: Path) -> None:
    """Writes both files into `folder`, which exists. Raises OutputError; write into files.whole_folder to have all or nothing."""
    from safetensors.numpy import save

    data = save(_arrays_of(saved))
    with whole_file(folder / ARRAYS) as stream:
        stream.write(data)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "come_ros": __version__,
        "newest_keyframe": datetime.datetime.fromtimestamp(
            max(k.stamp_ns for k in saved.keyframes) * 1e-9, datetime.timezone.utc
        ).isoformat(timespec="seconds"),
        "keyframes": len(saved.keyframes),
        "sessions": saved.sessions,
        "places": saved.places,
        "metres": saved.metres if math.isfinite(saved.metres) else None,
        "metres_sigma": saved.sigma if math.isfinite(saved.sigma) else None,
        "voxel": saved.voxel if math.isfinite(saved.voxel) else None,
        "sha256": {ARRAYS: hashlib.sha256(data).hexdigest()},
    }
    write_text(folder / HEAD, json.dumps(head, indent=1) + "\n")


def map_folder(path: Path) -> Path:
    """The folder of a saved map: `path`, or the folder `map` inside it, where `come_ros bag` writes it."""
    return path / FOLDER if not (path / HEAD).exists() and (path / FOLDER / HEAD).exists() else path


def read_map(path: str | Path, places: str | None) -> SavedMap:
    """Reads the map in `map_folder(path)`. places: Backbone.places of the model in use, None for reading without a model. Raises MapError,
    with one line, if there is no map, or if it is damaged, of a newer version, or of another model."""
    folder = map_folder(Path(path).expanduser())
    head = _head_of(folder)
    made_by = str(head.get("places", ""))
    if places is not None and made_by != places:
        raise MapError(
            f"map.load: the map {shown(folder)} was saved with {made_by or 'an unknown model'}, but this is {places}; their place "
            f"descriptors cannot be compared: start with that backbone and those weights, or save a map with these"
        )
    with _reading(folder / ARRAYS):
        data = (folder / ARRAYS).read_bytes()
        if hashlib.sha256(data).hexdigest() != head["sha256"][ARRAYS]:
            raise ValueError("its checksum is another one than when it was saved")
        from safetensors.numpy import load

        keyframes, nodes, edges = _from_arrays(load(data))
        metres, voxel = (math.nan if head[k] is None else float(head[k]) for k in ("metres", "voxel"))
        if metres <= 0 or voxel <= 0:
            raise ValueError("its unit or voxel is not positive")
        sigma = math.nan if head.get("metres_sigma") is None else float(head["metres_sigma"])  # maps of 0.1 do not say
        if sigma < 0 or any(map(math.isinf, (metres, sigma, voxel))):
            raise ValueError("its unit, sigma or voxel is negative or infinite")
    return SavedMap(tuple(keyframes), nodes, edges, made_by, metres, sigma, voxel, shown(folder))


def _head_of(folder: Path) -> dict[str, Any]:
    """Reads map.json. Raises MapError if this version cannot read the map."""
    if not folder.is_dir():
        raise MapError(
            f"map.load: {shown(folder)} is not a folder: give the folder that ~/save_map or `come_ros bag` wrote"
        )
    if not (folder / HEAD).exists():
        without = " (it was saved without keyframes: set loop.enabled to true)" if (folder / "map.ply").exists() else ""
        raise MapError(
            f"map.load: {shown(folder)} holds no map to load{without}: give a folder with {HEAD}, as ~/save_map and `come_ros bag` "
            f"write it"
        )
    with _reading(folder / HEAD):
        head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        if not isinstance(head, dict):
            raise ValueError("it holds no table")
    if head.get("format") != FORMAT:
        raise MapError(
            f"map.load: {shown(folder / HEAD)} is not of a come_ros map: give a folder that ~/save_map or `come_ros bag` wrote"
        )
    version = head.get("version")
    if isinstance(version, int) and version > VERSION:
        raise MapError(
            f"map.load: the map {shown(folder)} is of version {version} (come_ros {head.get('come_ros')}), but this come_ros "
            f"{__version__} reads versions up to {VERSION}: update come_ros"
        )
    return head


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns every error of reading the file `path` into a MapError of one line."""
    try:
        yield
    except MapError:
        raise
    except Exception as error:  # safetensors and JSON raise many kinds for damaged files
        text = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        first = str(text).strip().splitlines()[0]
        raise MapError(
            f"map.load: {shown(path)} is damaged, or cannot be read ({first}): copy the folder again, or save a new map"
        ) from error


def _arrays_of(saved: SavedMap) -> Arrays:
    keyframes, edges = saved.keyframes, saved.edges
    if any(k.view is None or k.thumbnail is None for k in keyframes) or not keyframes:
        raise OutputError("there is no keyframe with its view in the map: nothing could be found again in it")
    views = [k.view for k in keyframes if k.view is not None]
    thumbnails = [k.thumbnail for k in keyframes if k.thumbnail is not None]
    return {
        "stamps_ns": np.array([k.stamp_ns for k in keyframes], np.int64),
        "session": np.array([k.session for k in keyframes], np.int64),
        "odom_from_camera": np.stack([k.odom_from_camera for k in keyframes]),
        **{f"node_{name}": a for name, a in _similarity_arrays(saved.nodes).items()},
        "edge_first": edges.first.astype(np.int64),
        "edge_second": edges.second.astype(np.int64),
        **{f"edge_{name}": a for name, a in _similarity_arrays(edges.measured).items()},
        "edge_root": np.ascontiguousarray(edges.root),
        "edge_switchable": edges.switchable.astype(np.uint8),
        "place": np.stack([v.place for v in views]),
        "focal": np.array([v.focal for v in views], np.float64),
        "usual_depth": np.array([v.usual_depth for v in views], np.float64),
        "features": np.array([len(v) for v in views], np.int64),
        "feature_rays": np.concatenate([v.rays for v in views]),
        "feature_depth": np.concatenate([v.depth for v in views]),
        "feature_descriptors": np.concatenate([v.descriptors for v in views]),
        "size": np.array([t.depth.shape for t in thumbnails], np.int64),
        "intrinsics": np.stack([t.intrinsics for t in thumbnails]),
        "depth": np.concatenate([t.depth.ravel() for t in thumbnails]),
        "image": np.concatenate([t.image.reshape(-1, 3) for t in thumbnails]),
    }


def _similarity_arrays(s: Similarities) -> Arrays:
    return {
        "log_scale": np.ascontiguousarray(s.log_scale),
        "rotation": np.ascontiguousarray(s.rotation),
        "translation": np.ascontiguousarray(s.translation),
    }


def _from_arrays(a: Arrays) -> tuple[list[Keyframe], Similarities, Edges]:
    """Raises KeyError or ValueError if arrays are missing, of the wrong shape, or inconsistent."""
    k, e = len(a["stamps_ns"]), len(a["edge_first"])
    features, pixels = int(a["features"].sum()), int(a["size"].prod(axis=1).sum())
    _check(a, np.int64, stamps_ns=(k,), session=(k,), edge_first=(e,), edge_second=(e,), features=(k,), size=(k, 2))
    _check(
        a, np.float64, odom_from_camera=(k, 4, 4), node_log_scale=(k,), node_rotation=(k, 3, 3),
        node_translation=(k, 3), edge_log_scale=(e,), edge_rotation=(e, 3, 3), edge_translation=(e, 3),
        edge_root=(e, DIMENSIONS, DIMENSIONS), focal=(k,), usual_depth=(k,), intrinsics=(k, 3, 3),
    )  # fmt: skip
    _check(a, np.float32, place=(k, a["place"].shape[-1]), feature_rays=(features, 2), feature_depth=(features,))
    _check(a, np.uint8, edge_switchable=(e,), feature_descriptors=(features, 128), image=(pixels, 3))
    _check(a, np.float16, depth=(pixels,))
    if not k or (a["features"] < 0).any() or (a["size"] < 1).any():
        raise ValueError("it holds no keyframes")
    for name in (*(n for n in a if n.startswith(("node_", "edge_"))), "place", "feature_rays", "focal", "usual_depth"):
        if not np.isfinite(a[name]).all():
            raise ValueError(f"{name} is not finite")
    poses = [_matrices(a["node_rotation"], a["node_translation"]), a["odom_from_camera"]]
    poses.append(_matrices(a["edge_rotation"], a["edge_translation"]))
    if not all(is_finite_pose(p).all() for p in poses) or not (a["intrinsics"][:, [0, 1], [0, 1]] > 0).all():
        raise ValueError("a pose is not rigid, or a focal length not positive")
    ends = np.concatenate([a["edge_first"], a["edge_second"]])
    order = np.lexsort((a["stamps_ns"], a["session"]))
    if (len(ends) and not (ends.min() >= 0 and ends.max() < k)) or (order != np.arange(k)).any():
        raise ValueError("keyframes and their edges do not fit together")
    if a["session"][0] < 0:
        raise ValueError("a session has a negative number")
    ends_of = np.cumsum(a["features"])[:-1]
    pixels_of = np.cumsum(a["size"].prod(axis=1))[:-1]
    parts = zip(
        *(np.split(a[name], ends_of) for name in ("feature_rays", "feature_depth", "feature_descriptors")),
        *(np.split(a[name], pixels_of) for name in ("image", "depth")),
        strict=True,
    )
    keyframes = []
    for i, (rays, depth, descriptors, image, far) in enumerate(parts):
        height, width = a["size"][i]
        keyframes.append(
            Keyframe(
                int(a["stamps_ns"][i]),
                a["odom_from_camera"][i],
                View(rays, depth, descriptors, float(a["focal"][i]), float(a["usual_depth"][i]), a["place"][i]),
                Thumbnail(image.reshape(height, width, 3), far.reshape(height, width), a["intrinsics"][i]),
                int(a["session"][i]),
            )
        )
    nodes = Similarities(a["node_log_scale"], a["node_rotation"], a["node_translation"])
    measured = Similarities(a["edge_log_scale"], a["edge_rotation"], a["edge_translation"])
    return (
        keyframes,
        nodes,
        Edges(
            a["edge_first"].astype(np.intp), a["edge_second"].astype(np.intp), measured, a["edge_root"],
            a["edge_switchable"].astype(bool),
        ),
    )  # fmt: skip


def _matrices(rotation: NDArray[Any], translation: NDArray[Any]) -> NDArray[np.float64]:
    return Similarities(np.zeros(len(rotation)), rotation, translation).poses()


def _check(a: Arrays, kind: Any, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        if a[name].shape != shape or a[name].dtype != kind:
            raise ValueError(f"{name} is {a[name].dtype} {a[name].shape}, but must be {np.dtype(kind)} {shape}")
