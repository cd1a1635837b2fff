"""Saved maps and `come_ros bag`: one run leaves a map, the next starts in it, and a full disk costs no map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros.datasets.bag_writer import BagWriter
from come_ros.errors import OutputError
from come_ros.outputs import world
from come_ros.tools import cli
from come_ros.types import Frame

FAKE = ("backbone=fake", "keyframe.mode=every", "refine.mode=none", "odometry.rate=keyframe")
K = np.array([[280.0, 0, 159.5], [0, 282.0, 119.5], [0, 0, 1]])
START_NS, STEP_NS = 1_700_000_000_000_000_000, 100_000_000


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("come_ros.tools.bag.job.draw", lambda path, overview, title: path.write_bytes(b"picture"))
    monkeypatch.setattr("come_ros.tools.report.view.write_view", lambda results: "")


def bag_of(path: Path, seed: int, count: int = 3) -> Path:
    """A camera that stands in front of a wall; 0: a plain one."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (15, 20, 3)) if seed else np.full((15, 20, 3), 90)
    image = np.kron(blocks, np.ones((16, 16, 1))).astype(np.uint8)
    with BagWriter(path, "mcap") as bag:
        for i in range(count):
            bag.write(Frame(image, START_NS + i * STEP_NS, "camera", K), None, None)
    return path


def run(source: Path, out: Path, *settings: str, overwrite: bool = False) -> int:
    given = [word for text in (*FAKE, *settings) for word in ("--set", text)]
    return cli.main(["bag", str(source), "-o", str(out), "--no-bag", *given, *["--overwrite"] * overwrite])


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    assert run(bag_of(tmp_path / "one", 1), tmp_path / "out") == 0
    return tmp_path / "out"


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_the_next_run_finds_itself_in_the_map_of_the_last(
    mapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(mapped / "map")
    assert sorted(before) == ["keyframes.safetensors", "map.json"]
    assert run(tmp_path / "one", tmp_path / "again", f"map.load={mapped}", "map.mode=localize") == 0
    place = json.loads((tmp_path / "again" / "metrics.json").read_text())["saved_map"]
    assert place["located"] and place["keyframes"] == 1 and place["unit"] == pytest.approx(1.0, abs=1e-6)
    assert "found in it after" in capsys.readouterr().out
    assert (tmp_path / "again" / "trajectory_map.tum").exists() and not (tmp_path / "again" / "map").exists()
    assert run(tmp_path / "one", mapped, f"map.load={mapped}", overwrite=True) == 0  # grows in place
    assert json.loads((mapped / "map" / "map.json").read_text())["sessions"] == 2
    assert len(content(mapped / "map")["keyframes.safetensors"]) > len(before["keyframes.safetensors"])


@pytest.mark.parametrize("mode", ["build", "localize"])
def test_elsewhere_it_says_that_it_was_not_found(
    mode: str, mapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(mapped / "map")
    for seed in (0, 2):
        out = tmp_path / f"out_{seed}"
        assert run(bag_of(tmp_path / f"other_{seed}", seed), out, f"map.load={mapped}/map", f"map.mode={mode}") == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            "the camera was not found in the map" in error
            and "no view looks like it" in error
            and "Traceback" not in error
        )
        there = {p.name for p in out.iterdir()}
        assert {"trajectory.tum", "map.ply", "metrics.json"} <= there and not {"trajectory_map.tum", "map"} & there
    assert content(mapped / "map") == before


def test_a_full_disk_keeps_the_map_that_was_there(
    mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(mapped / "map")

    def full(saved: object, folder: Path) -> None:
        (folder / "map.json").write_bytes(b"half of it")
        raise OutputError("cannot write map.json: No space left on device: choose a folder with enough space")

    monkeypatch.setattr(world, "write_map", full)
    assert run(tmp_path / "one", mapped, f"map.load={mapped}", overwrite=True) == 1
    assert "map is missing or not whole" in (error := capsys.readouterr().err) and "No space left" in error
    assert content(mapped / "map") == before, "the old one, whole"
    assert run(tmp_path / "one", tmp_path / "new") == 1
    assert not (tmp_path / "new" / "map").exists()


def test_a_map_that_cannot_be_read_ends_the_run_before_it_begins(
    mapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mapped / "map" / "keyframes.safetensors").write_bytes(b"damaged")
    assert run(tmp_path / "one", tmp_path / "none", f"map.load={mapped}") == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert (
        len(error) == 1 and "keyframes.safetensors is damaged" in error[0] and not list((tmp_path / "none").iterdir())
    )
