"""Whole recordings, damaged at random: at messages, chunks and files, in every storage; folders of images; parameter files.

Whatever comes: no exception but ours, no file that is read for ever, no memory that is taken for nothing, and nothing lost that
another reader of the same bytes still finds. The tests take a few hundred cases, benchmark/robustness/fuzz_recordings.py ten thousand.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import recordings
from recordings import HEIGHT, IMAGES, INFOS, WIDTH

from come_ros.config_text import load_config
from come_ros.datasets.rosbag import Bag
from come_ros.datasets.sequence import BagSequence, open_sequence
from come_ros.errors import ComeRosError, ConfigError

COUNT = 6
MOST_SECONDS = (
    10.0  # of one case, of this process alone, however busy the machine is; a sound one takes some milliseconds
)


def make_originals(folder: Path) -> dict[str, Path]:
    """Sound recordings of all kinds, small: name -> file or folder."""
    from mcap.writer import CompressionType, IndexType

    made = {
        "mcap bag": recordings.write(folder / "mcap_bag", COUNT),
        "sqlite bag": recordings.write(folder / "sqlite_bag", COUNT, "sqlite3"),
        "packed bag": recordings.write(folder / "packed_bag", COUNT, compression="message"),
        "packed file bag": recordings.write(folder / "packed_file_bag", COUNT, compression="file"),
        "ros 1": recordings.write_ros1(folder / "plain.bag", COUNT),
        "ros 1 bz2": recordings.write_ros1(folder / "bz2.bag", COUNT, "bz2"),
        "ros 1 lz4": recordings.write_ros1(folder / "lz4.bag", COUNT, "lz4"),
        "mcap without chunks": recordings.write_mcap(folder / "runs.mcap", COUNT, use_chunking=False),
        "mcap without an index": recordings.write_mcap(
            folder / "blind.mcap", COUNT, index_types=IndexType.NONE, chunk_size=4000
        ),
        "mcap without checksums": recordings.write_mcap(
            folder / "unchecked.mcap", COUNT, compression=CompressionType.NONE, enable_crcs=False, chunk_size=4000
        ),
        "mcap zstd": recordings.write_mcap(
            folder / "zstd.mcap", COUNT, compression=CompressionType.ZSTD, chunk_size=4000
        ),
        "mcap lz4": recordings.write_mcap(folder / "lz4.mcap", COUNT, compression=CompressionType.LZ4, chunk_size=4000),
        "images": recordings.write_images(folder / "images", 4),
        "photographs": recordings.write_images(folder / "photographs", 4, ".jpg"),
        "tiff": recordings.write_images(folder / "tiff", 3, ".tif"),
        "transforms": _transforms(folder / "transforms"),
        "colmap text": _colmap(folder / "colmap_text", binary=False),
        "colmap binary": _colmap(folder / "colmap_binary", binary=True),
        "tum": _tum(folder / "tum"),
        "parameters": _parameters(folder / "parameters.yaml"),
    }
    return made


def _transforms(folder: Path) -> Path:
    recordings.write_images(folder, 3)
    frames = []
    for i in range(3):
        matrix = np.eye(4)
        matrix[0, 3] = i
        frames.append({"file_path": f"{i:02}.png", "transform_matrix": matrix.tolist()})
    about = {"fl_x": 30.0, "fl_y": 30.0, "cx": 20, "cy": 15, "w": WIDTH, "h": HEIGHT, "k1": -0.1, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(about))
    return folder


def _colmap(folder: Path, binary: bool) -> Path:
    recordings.write_images(folder / "images", 3)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    if not binary:
        (model / "cameras.txt").write_text(f"# cameras\n1 SIMPLE_RADIAL {WIDTH} {HEIGHT} 30 20 15 -0.05\n")
        rows = [f"{i + 1} 1 0 0 0 {-0.1 * i} 0 0 1 {i:02}.png\n1.5 2.5 -1\n" for i in range(3)]
        (model / "images.txt").write_text("".join(rows))
        return folder
    (model / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 2, WIDTH, HEIGHT, 30, 20, 15, -0.05))
    images = [
        struct.pack("<I7dI", i + 1, 1, 0, 0, 0, -0.1 * i, 0, 0, 1)
        + b"%02d.png\0" % i
        + struct.pack("<Qddq", 1, 1, 2, -1)
        for i in range(3)
    ]
    (model / "images.bin").write_bytes(struct.pack("<Q", 3) + b"".join(images))
    return folder


def _tum(folder: Path) -> Path:
    recordings.write_images(folder / "rgb", 3)
    (folder / "depth").mkdir()
    rows = []
    for i in range(3):
        depth = np.full((HEIGHT, WIDTH), 5000 + i, np.uint16)
        (folder / "depth" / f"{i:02}.png").write_bytes(recordings.packed(depth))
        rows.append(f"{1000 + i}.5 rgb/{i:02}.png depth/{i:02}.png")
    (folder / "frames.txt").write_text("\n".join(rows))
    (folder / "groundtruth.txt").write_text("\n".join(f"{1000 + i}.5 {i} 0 0 0 0 0 1" for i in range(3)))
    (folder / "sequence.json").write_text(
        json.dumps({"camera": {"fx": 30, "fy": 30, "cx": 20, "cy": 15, "d": [-0.1, 0.01]}})
    )
    return folder


def _parameters(path: Path) -> Path:
    lines = [
        "/**:", "  ros__parameters:", "    backbone: fake", "    window.size: 6", "    window:", "      overlap: 2",
        "    cov: {position_floor: 1.0e-3}", "    cameras: [left, right]", "    rectify: off",
        "come:", "  ros__parameters:", "    max_data_age: 2.5",
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    return path


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One of the ways in which files become damaged."""
    data, size = bytearray(content), len(content)
    how = int(rng.integers(9))
    at = int(rng.integers(size)) if size else 0
    length = int(min(size - at, 1 << rng.integers(0, 13)))
    if how == 0:  # cut off
        del data[at:]
    elif how == 1:  # single bits
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
    elif how == 2:  # noise
        data[at : at + length] = rng.bytes(length)
    elif how == 3:  # a block that was never written
        data[at : at + length] = bytes(length)
    elif how == 4:
        del data[at : at + length]
    elif how == 5:
        data[at:at] = rng.bytes(length)
    elif how == 6:  # blocks that changed places
        other = int(rng.integers(size - length + 1))
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    elif how == 7:  # a number that is out of all range
        number = int(rng.choice(np.array([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1], np.uint64)))
        data[at : at + 8] = struct.pack("<Q", number)[: len(data[at : at + 8])]
    else:  # at the start, where the types of files are told, or at the end, where their index is
        where = int(rng.integers(min(size, 64))) if rng.random() < 0.5 else size - 1 - int(rng.integers(min(size, 400)))
        data[where : where + 4] = rng.bytes(4)
    return bytes(data)


def damage_files(path: Path, rng: np.random.Generator) -> str:
    """Damages a copy in place. What was done, in words."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    file = files[int(rng.integers(len(files)))]
    if path.is_dir() and rng.random() < 0.15:
        how = int(rng.integers(4))
        if how == 0:
            file.unlink()
        elif how == 1:
            file.rename(file.with_name("other name" + file.suffix))
        elif how == 2:
            file.write_bytes(b"")
        else:
            file.unlink()
            file.mkdir()
        return f"{file.name}: {('missing', 'renamed', 'empty', 'a folder')[how]}"
    content = file.read_bytes()
    if content:
        file.write_bytes(damaged(content, rng))
    return f"{file.name}: damaged"


@dataclass
class Tally:
    """What became of the cases. read: images or parameters came out; refused: one of our errors; faults: what must not be."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    tool_runs: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def read_all(path: Path) -> int:
    """Images that all readers of a recording give together. Raises ComeRosError."""
    with open_sequence(path) as source:
        images = 0
        for frame in source.iter_frames():
            assert frame.image.dtype == np.uint8 and frame.image.ndim == 3 and frame.image.shape[2] == 3
            assert frame.intrinsics is None or np.isfinite(frame.intrinsics).all()
            images += 1
            assert images <= 100 * COUNT, "a small recording has no end"
        for _, depth in source.iter_depth():
            assert depth.dtype == np.float32 and depth.ndim == 2
        assert all(np.isfinite(pose).all() for pose in source.truth().values())
        if isinstance(source, BagSequence):
            bag: Bag = source.bag
            for _, _, data in bag.iter_raw(*filter(None, (IMAGES, INFOS))):
                assert len(data) > 4
        assert "\n" not in source.damage
        return images


def run_tool(path: Path, out: Path, images: int) -> str:
    """Runs `come_ros bag`; what is wrong, "" if nothing is: results that could be made must be there."""
    from come_ros.tools import cli

    shutil.rmtree(out, ignore_errors=True)
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = cli.main(["bag", str(path), "-o", str(out), "--set", "backbone=fake", "--set", "keyframe.mode=every"])
    told = errors.getvalue().strip()
    if "Traceback" in told or code not in (0, 1):
        return f"exit code {code}: {told[-500:]}"
    there = (out / "metrics.json").is_file()
    if there:
        metrics = json.loads((out / "metrics.json").read_text())["frames"]
        if metrics["read"] + metrics["dropped"]["decode"] < images:
            return f"{images} images can be read, but the tool read {metrics['read']}: {told[-500:]}"
    elif images > 1 and "none could be used" not in told:
        return f"{images} images can be read, but there are no results: {told[-500:]}"
    return "" if there or code == 1 else "no results, but exit code 0"


def one_case(seed: int, originals: dict[str, Path], work: Path, tally: Tally, tool: bool = False) -> None:
    """Damages a copy of one of the originals and reads it. tool: with `come_ros bag` as well."""
    rng = np.random.default_rng((seed, 20_261_129))
    name = sorted(originals)[seed % len(originals)]
    original = originals[name]
    copy = work / original.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    if original.is_dir():
        shutil.copytree(original, copy)
    else:
        shutil.copy(original, copy)
    done = [damage_files(copy, rng) for _ in range(1 + (rng.random() < 0.2))] if any_file(copy) else []
    begun = time.process_time()
    images = 0
    tally.cases += 1
    try:
        if name == "parameters":
            load_config(str(copy))
        else:
            images = read_all(copy)
        tally.read += 1
    except ComeRosError as error:
        tally.refused += 1
        if "\n" in str(error) or not str(error).strip():
            tally.faults.append(f"seed {seed}, {name} ({'; '.join(done)}): not one line: {error!r}")
        if name == "parameters" and not isinstance(error, ConfigError):
            tally.faults.append(f"seed {seed}, {name}: {error!r}")
    except Exception as error:
        tally.faults.append(f"seed {seed}, {name} ({'; '.join(done)}): {type(error).__name__}: {error}")
    if tool and name != "parameters" and copy.exists():
        tally.tool_runs += 1
        problem = _guarded(lambda: run_tool(copy, work / "out", images))
        if problem:
            tally.faults.append(f"seed {seed}, {name} ({'; '.join(done)}), come_ros bag: {problem}")
    seconds = time.process_time() - begun
    tally.slowest_s = max(tally.slowest_s, seconds)
    if seconds > MOST_SECONDS:
        tally.faults.append(f"seed {seed}, {name} ({'; '.join(done)}): took {seconds:.1f} s")


def any_file(path: Path) -> bool:
    return path.is_file() or any(p.is_file() for p in path.rglob("*"))


def _guarded(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def quiet() -> Any:
    """Without the warnings, of which there are thousands."""
    log = logging.getLogger("come_ros")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
