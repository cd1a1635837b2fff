"""Maps on disk: what is read is what was written, all of it or nothing is there, and each kind of wrong folder has its line."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from come_ros import files, geometry
from come_ros.errors import MapError, OutputError
from come_ros.mapping.graph import Edges, Similarities, root_information
from come_ros.mapping.keyframe import LONGEST_SIDE, Keyframe, Thumbnail, thumbnail_of
from come_ros.mapping.saved_map import ARRAYS, HEAD, SavedMap, read_map, write_map
from come_ros.mapping.view import View
from come_ros.outputs.cloud import POINT_DTYPE
from come_ros.outputs.world import Snapshot
from come_ros.types import Alignment, Frame, Submap

MODEL = "vggt with weights 0123456789abcdef"


def some_map(count: int = 5, seed: int = 0) -> SavedMap:
    rng = np.random.default_rng(seed)
    poses = geometry.transform(
        geometry.rotation_from_vector(rng.normal(0, 1, (count, 3))), rng.normal(0, 1, (count, 3))
    )
    keyframes = []
    for i in range(count):
        n, size = int(rng.integers(0, 9)), (6 + i % 2, 8)
        depth = rng.uniform(1, 3, size).astype(np.float16)
        depth[0, :3] = np.nan
        view = View(
            rng.normal(0, 0.3, (n, 2)).astype(np.float32), np.full(n, np.nan, np.float32),
            rng.integers(0, 255, (n, 128), dtype=np.uint8), 300.0, 2.0, rng.normal(0, 1, 16).astype(np.float32),
        )  # fmt: skip
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        keyframes.append(
            Keyframe(10 * i - 25 * (i > 2), poses[i], view, Thumbnail(image, depth, np.diag([5.0, 5, 1])), int(i > 2))
        )
    nodes = Similarities(rng.normal(0, 0.2, count), poses[::-1, :3, :3].copy(), poses[:, :3, 3].copy())
    root = root_information(0.1, 0.2, 0.3)
    edges = Edges.one(0, 1, nodes.at([2]), root).joined(Edges.one(1, count - 1, nodes.at([1]), root, True))
    return SavedMap(tuple(keyframes), nodes, edges, MODEL, 0.5, 0.03, 0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "map"
    out.mkdir()
    write_map(some_map(), out)
    return out


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    wrote, read = some_map(), read_map(folder.parent, MODEL)  # also from the folder above, as `come_ros bag` leaves it
    assert sorted(p.name for p in folder.iterdir()) == [ARRAYS, HEAD]
    assert (read.places, read.metres, read.sigma, read.voxel, read.sessions) == (
        MODEL,
        0.5,
        0.03,
        0.02,
        2,
    ) and read.path == str(folder)
    for a, b in zip(wrote.keyframes, read.keyframes, strict=True):
        assert a.key == b.key and np.array_equal(a.odom_from_camera, b.odom_from_camera)
        for part in ("view", "thumbnail"):
            for name, value in vars(getattr(a, part)).items():
                np.testing.assert_array_equal(value, getattr(getattr(b, part), name))
    for name in ("log_scale", "rotation", "translation"):
        assert np.array_equal(getattr(wrote.nodes, name), getattr(read.nodes, name))
        assert np.array_equal(getattr(wrote.edges.measured, name), getattr(read.edges.measured, name))
    for x, y in zip((*wrote.edges[:2], *wrote.edges[3:]), (*read.edges[:2], *read.edges[3:]), strict=True):
        assert np.array_equal(x, y)
    write_map(dataclasses.replace(wrote, metres=math.nan, voxel=math.nan), folder)
    assert math.isnan(read_map(folder, MODEL).metres) and math.isnan(read_map(folder, MODEL).voxel)


def change_head(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        head = json.loads((folder / HEAD).read_text())
        (folder / HEAD).write_text(json.dumps({**head, **values}))

    return change


def change_arrays(**values: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    """Other arrays, with a checksum that fits."""

    def change(folder: Path) -> None:
        from safetensors.numpy import load, save

        arrays = load((folder / ARRAYS).read_bytes())
        for name, by in values.items():
            arrays[name] = np.ascontiguousarray(by(arrays[name].copy()))
        data = save({k: v for k, v in arrays.items() if v.size})
        (folder / ARRAYS).write_bytes(data)
        change_head(sha256={ARRAYS: hashlib.sha256(data).hexdigest()})(folder)

    return change


def with_value(at: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(a: np.ndarray) -> np.ndarray:
        a[at] = value
        return a

    return change


def flip(folder: Path) -> None:
    data = bytearray((folder / ARRAYS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / ARRAYS).write_bytes(data)


def cut(folder: Path) -> None:
    data = (folder / ARRAYS).read_bytes()
    (folder / ARRAYS).write_bytes(data[: len(data) // 2])


def become_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("not a folder")


def only_a_cloud(folder: Path) -> None:
    (folder / HEAD).unlink()
    (folder / "map.ply").touch()


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file": (become_file, "is not a folder: give the folder that ~/save_map"),
    "an empty folder": (lambda f: [p.unlink() for p in f.iterdir()], "holds no map to load: give a folder with map.json"),
    "saved without keyframes": (only_a_cloud, r"saved without keyframes: set loop\.enabled to true"),
    "the arrays are gone": (lambda f: (f / ARRAYS).unlink(), r"safetensors is damaged, or cannot be read \(No such file"),
    "no JSON": (lambda f: (f / HEAD).write_text('{"format": '), r"map\.json is damaged, or cannot be read"),
    "not UTF-8": (lambda f: (f / HEAD).write_bytes(b"\xff\x00{}"), r"map\.json is damaged, or cannot be read"),
    "a list": (lambda f: (f / HEAD).write_text("[1]"), "holds no table"),
    "of another program": (change_head(format="rtabmap"), "is not of a come_ros map"),
    "newer": (change_head(version=2, come_ros="9.1.0"), r"of version 2 \(come_ros 9\.1\.0\).*versions up to 1: update come_ros"),
    "other weights": (change_head(places="vggt with weights ff"), "saved with vggt with weights ff, but this is vggt with weights 0123"),
    "another backbone": (change_head(places="da3 with weights 01"), "start with that backbone and those weights"),
    "no model": (change_head(places=""), "an unknown model"),
    "cut off": (cut, "its checksum is another one"),
    "one bit": (flip, "its checksum is another one"),
    "no checksum": (change_head(sha256={}), "damaged, or cannot be read"),
    "a unit of nothing": (change_head(metres=0), "not positive"),
    "a unit of infinity": (change_head(metres=float("inf")), "infinite"),
    "a negative sigma": (change_head(metres_sigma=-0.1), "negative"),
    "a unit that is text": (change_head(metres="much"), "damaged, or cannot be read"),
    "too few poses": (change_arrays(odom_from_camera=lambda a: a[:3]), r"odom_from_camera is float64 \(3, 4, 4\), but must be"),
    "other numbers": (change_arrays(depth=lambda a: a.astype(np.float32)), "depth is float32"),
    "no keyframes": (change_arrays(stamps_ns=lambda a: a[:0]), "damaged, or cannot be read"),
    "a pose that is none": (change_arrays(odom_from_camera=with_value((0, 0, 0), 7.0)), "a pose is not rigid"),
    "a scale of NaN": (change_arrays(node_log_scale=with_value(0, np.nan)), "node_log_scale is not finite"),
    "a ray of infinity": (change_arrays(feature_rays=with_value((0, 0), np.inf)), "feature_rays is not finite"),
    "no focal length": (change_arrays(intrinsics=with_value((0, 0, 0), 0.0)), "focal length not positive"),
    "an edge to nowhere": (change_arrays(edge_second=with_value(0, 99)), "do not fit together"),
    "an order of its own": (change_arrays(stamps_ns=lambda a: a[::-1]), "do not fit together"),
    "a negative session": (change_arrays(session=with_value(0, -1)), "negative number"),
    "images of no size": (change_arrays(size=with_value((0, 0), 0)), "damaged, or cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_is_no_map_of_ours_gets_one_line(what: str, folder: Path) -> None:
    change, told = WRONG[what]
    change(folder)
    with pytest.raises(MapError, match=told) as error:
        read_map(folder, MODEL)
    assert (
        "\n" not in str(error.value) and str(folder) in str(error.value) and str(error.value).startswith("map.load: ")
    )


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MapError, match="nowhere is not a folder"):
        read_map(tmp_path / "nowhere", MODEL)


def test_a_map_without_views_is_not_written(tmp_path: Path) -> None:
    bare = some_map()
    bare = dataclasses.replace(bare, keyframes=tuple(dataclasses.replace(k, thumbnail=None) for k in bare.keyframes))
    with pytest.raises(OutputError, match="nothing could be found again"):
        write_map(bare, tmp_path)


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_full_disk_leaves_the_old_map_and_no_part_of_a_new_one(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after so many files."""
    snapshot = Snapshot(np.zeros(3, POINT_DTYPE), {5: np.eye(4)}, {5: np.eye(4)}, some_map())
    snapshot.save(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    count, fsync = [0], os.fsync

    def full(number: int) -> None:
        count[0] += 1
        if count[0] > written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device: choose a (folder|place) with enough space"):
        snapshot.save(tmp_path / "new")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    assert len(read_map(tmp_path / "old", MODEL).keyframes) == 5


@pytest.mark.parametrize("size", [(9, 12), (2 * LONGEST_SIDE, 40)])
def test_a_thumbnail_gives_the_points_of_its_frame_again(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 3, size).astype(np.float32)
    k = np.array([[50.0, 0, 5.5], [0, 60.0, 4.5], [0, 0, 1]])
    trusted = rng.random(size) < 0.5
    depth[0, 0], depth[1, 1], trusted[:2, :2] = np.nan, 1e6, True
    submap = Submap(
        (Frame(np.zeros((8, 8, 3), np.uint8), 1),), rng.integers(0, 255, (1, *size, 3), dtype=np.uint8), depth[None],
        np.ones((1, *size), np.float32), k[None], np.eye(4)[None], Alignment(True, 1, 1.0),
    )  # fmt: skip
    small = thumbnail_of(submap, 0, trusted)
    step = 1 if max(size) <= LONGEST_SIDE else 2
    places, colours = small.points()
    good = (trusted & np.isfinite(depth) & (depth < 1e4))[::step, ::step]
    wanted = geometry.unproject(depth, k)[::step, ::step][good]
    assert small.depth.shape == good.shape and max(small.depth.shape) <= LONGEST_SIDE
    np.testing.assert_allclose(places, wanted, rtol=2e-3, atol=2e-3)
    assert np.array_equal(colours, submap.images[0][::step, ::step][good])
