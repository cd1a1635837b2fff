"""Binary glTF 2.0 (Khronos, 2021): clouds, lines, surfaces and cameras in one file."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..datasets.transforms import OPTICAL_FROM_OPENGL
from ..files import whole_file
from ..geometry import transform
from ..outputs.cloud import colours_of
from ..types import F32, F64, U8
from .arrays import Camera

POINTS, LINES, TRIANGLES = 0, 1, 4
FLOAT, BYTE, INT = 5126, 5121, 5125
VERTICES, INDICES = 34962, 34963
YUP_FROM_ZUP = transform([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.zeros(3))  # glTF has y up, ROS z
PATH_COLOUR = 255, 80, 0
NEAR = 0.01  # of the cameras' frusta; glTF wants a number


class Glb:
    """Collects one scene. Every node turns z up, as in ROS, to y up: some programs ignore what is above a camera's node."""

    def __init__(self, unit: str) -> None:
        """unit: of all lengths, in words."""
        self._data = bytearray()
        asset = {"version": "2.0", "generator": f"come_ros {__version__}", "extras": {"unit": unit}}
        self._json: dict[str, Any] = {
            "asset": asset, "scene": 0, "nodes": [], "meshes": [], "cameras": [],
            "accessors": [], "bufferViews": [], "materials": [{"name": "colours", "extensions": {"KHR_materials_unlit": {}}}],
            "extensionsUsed": ["KHR_materials_unlit"],
        }  # fmt: skip

    def add(self, name: str, mode: int, places: F32, colours: U8, indices: NDArray[np.uint32] | None = None) -> None:
        """Vertices (n, 3) with RGB colours (n, 3), drawn as `mode`. indices: of triangles, (m, 3). Nothing is added without vertices."""
        if not len(places):
            return
        rgba = np.concatenate([colours, np.full((len(colours), 1), 255, np.uint8)], axis=1)
        places = np.ascontiguousarray(places, "<f4")
        box = {"min": places.min(axis=0).tolist(), "max": places.max(axis=0).tolist()}
        attributes = {
            "POSITION": self._array(places, FLOAT, "VEC3", VERTICES, **box),
            "COLOR_0": self._array(rgba, BYTE, "VEC4", VERTICES, normalized=True),
        }
        part: dict[str, Any] = {"attributes": attributes, "mode": mode, "material": 0}
        if indices is not None:
            part["indices"] = self._array(np.ascontiguousarray(indices, "<u4").ravel(), INT, "SCALAR", INDICES)
        self._json["meshes"].append({"name": name, "primitives": [part]})
        self._json["nodes"].append(
            {"name": name, "mesh": len(self._json["meshes"]) - 1, "matrix": _matrix(YUP_FROM_ZUP)}
        )

    def add_camera(self, camera: Camera) -> None:
        """A node of that camera; glTF's cameras look along -z with y up, and have their centre in the middle of the image."""
        k = camera.intrinsics
        lens = {
            "yfov": 2 * math.atan(camera.height / 2 / float(k[1, 1])),
            "aspectRatio": camera.width / camera.height * float(k[1, 1] / k[0, 0]),
            "znear": NEAR,
        }
        self._json["cameras"].append({"type": "perspective", "name": camera.name, "perspective": lens})
        pose = _matrix(YUP_FROM_ZUP @ camera.world_from_camera @ OPTICAL_FROM_OPENGL)
        about = {"stamp_ns": str(camera.stamp_ns)}  # JSON's numbers have 53 bits
        lens_number = len(self._json["cameras"]) - 1
        self._json["nodes"].append({"name": camera.name, "matrix": pose, "camera": lens_number, "extras": about})

    def write(self, path: Path) -> None:
        """Raises OutputError."""
        nodes = {"scenes": [{"nodes": list(range(len(self._json["nodes"])))}]}
        content = {**self._json, **nodes, "buffers": [{"byteLength": len(self._data)}]}
        # the format wants no empty lists
        text = json.dumps({k: v for k, v in content.items() if v != []}).encode()
        text += b" " * (-len(text) % 4)
        data = bytes(self._data) + bytes(-len(self._data) % 4)
        with whole_file(path) as stream:
            stream.write(struct.pack("<III", 0x46546C67, 2, 12 + 8 + len(text) + 8 + len(data)))
            for kind, chunk in ((0x4E4F534A, text), (0x004E4942, data)):
                stream.write(struct.pack("<II", len(chunk), kind))
                stream.write(chunk)

    def _array(self, a: NDArray[Any], kind: int, shape: str, target: int, **more: Any) -> int:
        """Index of a new accessor."""
        self._data += bytes(-len(self._data) % 4)
        view = {"buffer": 0, "byteOffset": len(self._data), "byteLength": a.nbytes, "target": target}
        self._data += a.tobytes()
        self._json["bufferViews"].append(view)
        accessor = {
            "bufferView": len(self._json["bufferViews"]) - 1,
            "componentType": kind,
            "count": len(a),
            "type": shape,
        }
        self._json["accessors"].append({**accessor, **more})
        return len(self._json["accessors"]) - 1


def write_scene(
    path: Path, points: NDArray[np.void], cameras: Sequence[Camera], trajectory: Mapping[int, F64], unit: str
) -> None:
    """The cloud (of cloud.POINT_DTYPE), the path as a line, and the cameras. trajectory: stamp -> world_from_camera (4, 4). unit: of all
    lengths, in words. Raises OutputError."""
    scene = Glb(unit)
    scene.add("cloud", POINTS, np.stack([points[a] for a in "xyz"], axis=-1), colours_of(points))
    way = np.array([trajectory[t][:3, 3] for t in sorted(trajectory)], np.float32).reshape(-1, 3)
    ends = np.repeat(way, 2, axis=0)[1:-1]  # of each piece of the path: not every program knows line strips
    scene.add("path", LINES, ends, np.tile(np.array([PATH_COLOUR], np.uint8), (len(ends), 1)))
    for camera in cameras:
        scene.add_camera(camera)
    scene.write(path)


def _matrix(pose: F64) -> list[float]:
    """Column by column, as glTF has it."""
    return [float(v) for v in pose.T.ravel()]
