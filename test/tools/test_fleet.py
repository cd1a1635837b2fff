"""`come_ros fleet` without Ray: units of work run in threads of this process, with a stand-in for `come_ros bag`."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from recordings import write_images

from come_ros.fleet.executors import Here
from come_ros.fleet.record import read_record
from come_ros.tools import cli
from come_ros.tools import fleet as door

TEST = Path(__file__).resolve().parents[1]


@contextmanager
def here(*_: Any) -> Iterator[Here]:
    with Here(1) as executor:
        yield executor


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recordings, and no Ray."""
    monkeypatch.setattr(door, "session", here)
    monkeypatch.setattr(door, "check_ray", lambda: None)
    monkeypatch.setattr(door, "COME_ROS", "fleet.commands")
    monkeypatch.setenv("PYTHONPATH", str(TEST), os.pathsep)
    return tmp_path / "runs"


def recordings(runs: Path, *names: str) -> Path:
    for name in names:
        write_images(runs / name, 1)
    return runs


def run(source: Path, out: Path, *more: str) -> int:
    return cli.main(["fleet", str(source), "-o", str(out), "--set", "backbone=fake", *more])


def told(out: Path) -> dict[str, Any]:
    """Name -> what fleet.json has."""
    return {row["name"]: row for row in json.loads((out / "fleet.json").read_text())["recordings"]}


@pytest.mark.slow
def test_what_is_finished_and_unchanged_is_skipped_and_changes_are_logged(
    runs: Path, tmp_path: Path, caplog: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    recordings(runs, "good_1", "good_2")
    assert run(runs, out) == 0
    assert {name: row["state"] for name, row in told(out).items()} == {"good_1": "done", "good_2": "done"}
    assert sorted(path.name for path in out.iterdir()) == ["fleet.json", "good_1", "good_2", "index.html", "logs"]
    (out / ".fleet" / "good_1.whole.1").mkdir(parents=True)  # of a driver that was killed
    recordings(runs, "good_3")
    shutil.copytree(runs / "good_2", tmp_path / "same")  # its files have other times, and the same content
    shutil.rmtree(runs / "good_2")
    (tmp_path / "same").rename(runs / "good_2")
    capsys.readouterr()
    assert run(runs, out) == 0
    assert [told(out)[f"good_{i}"]["skipped"] for i in (1, 2, 3)] == [True, True, False]
    assert "3 done (2 earlier)" in capsys.readouterr().out and not caplog.messages
    (runs / "good_1" / "01.png").write_bytes(b"more")
    assert run(runs, out) == 0
    assert [told(out)[f"good_{i}"]["skipped"] for i in (1, 2, 3)] == [False, True, True]
    assert run(runs, out, "--set", "window.size=3") == 0
    assert not any(row["skipped"] for row in told(out).values())
    assert [text.partition(" is made again, because of changes: ")[2].partition(";")[0] for text in caplog.messages] == [
        "the recording's files", *["window.size 8 -> 3"] * 3,
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert run(Path("runs"), out, "--set", "window.size=3") == 0  # the same recordings
    assert all(row["skipped"] for row in told(out).values())
    assert run(runs, out, "--set", "window.size=3", "--again") == 0
    assert not any(row["skipped"] for row in told(out).values())


@pytest.mark.slow
def test_what_fails_is_reported_with_its_log_and_the_others_go_on(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    recordings(runs, "good_1", "wrong", "damaged_2", "good_9", "killed", "good_3")
    assert run(runs, out, "--retries", "2") == 1
    rows = told(out)
    assert list(rows) == ["killed", "wrong", "damaged_2", "good_9", "good_3", "good_1"]
    assert [rows[name]["state"] for name in ("killed", "wrong", "damaged_2")] == ["killed", "failed", "partial"]
    assert (rows["wrong"]["attempts"], rows["damaged_2"]["attempts"], rows["good_9"]["attempts"]) == (3, 3, 1)
    assert rows["good_3"]["ate"] == 3.0 and rows["good_3"]["ate_baseline"] == 10.0
    printed = capsys.readouterr()
    assert "nothing to read" in printed.out and "3 of 6 recordings" in printed.err
    assert (out / "logs" / "wrong.log").read_text().count("nothing to read") == 3 and not (out / "wrong").exists()
    page = (out / "index.html").read_text()
    assert page.index(">killed<") < page.index(">damaged_2<") < page.index(">good_9<") < page.index(">good_1<")
    assert 'href="logs/wrong.log"' in page and 'href="good_9/metrics.json"' in page and "http" not in page
    assert run(runs, out) == 1  # only what failed is tried again
    assert [name for name, row in told(out).items() if not row["skipped"]] == ["killed", "wrong"]


def test_lists_give_options_to_single_recordings(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, listed = tmp_path / "out", tmp_path / "list.txt"
    recordings(runs, "good_1", "good_2")
    listed.write_text("runs/good_1\nruns/good_2 --every 3 --set window.size=4\n")
    assert run(listed, out, "--fps", "10") == 0
    common = "--set backbone=fake --fps 10.0"
    assert (out / "good_1" / "words").read_text() == f"{common} --set threads=1"
    assert (out / "good_2" / "words").read_text() == f"{common} --every 3 --set window.size=4 --set threads=1"
    record = read_record(out / "good_2")
    assert record is not None and record.inputs.parameters["window.size"] == 4
    listed.write_text("runs/good_1 --nonsense\n")
    assert run(listed, out) == 1 and "--nonsense" in capsys.readouterr().err
    listed.write_text("runs/good_1\n")
    assert run(listed, out, "--fps", "10", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["totals"]["skipped"] == 1 and answer["folder"] == str(out)


def test_a_signal_keeps_what_is_finished(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    recordings(runs, "good_1", "good_2", "hangs")
    wait, sent = Here.wait, []

    def interrupted(self: Here, timeout_s: float) -> Any:
        if (out / "good_2").exists() and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return wait(self, timeout_s)

    monkeypatch.setattr(Here, "wait", interrupted)
    assert run(runs, out) == 130
    assert "2 of 3 recordings are finished" in capsys.readouterr().err
    assert told(out)["hangs"]["state"] == "stopped"
    assert not (out / "hangs").exists() and not (out / ".fleet").exists()


def test_two_fleets_do_not_work_in_one_folder(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recordings(runs, "good_1")
    with door._alone(tmp_path / "out"):
        assert run(runs, tmp_path / "out") == 1
    assert "another fleet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--retries", "-1"), "--retries is -1"),
        (("--segment-images", "7"), "50 or more"),
        (("--workers", "2", "--address", "auto"), "--workers"),
        (("--set", "window.size=99"), "2 .. 64"),
    ],
)
def test_options_out_of_range_are_refused(
    runs: Path, tmp_path: Path, words: tuple[str, ...], text: str, capsys: Any
) -> None:
    assert run(recordings(runs, "good_1"), tmp_path / "out", *words) == 1
    assert text in capsys.readouterr().err


def test_without_ray_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(recordings(tmp_path / "runs", "good_1"), tmp_path / "out") == 1
    assert capsys.readouterr().err.strip().endswith("needs Ray, which is not installed: pip install 'come_ros[fleet]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_long_recordings_are_cut_and_joined(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_images(runs / "good_1", 52)
    write_images(runs / "good_2", 50)
    words = ("--fps", "10", "--set", "input.max_side=112", "--set", "keyframe.mode=every")
    assert run(runs, out, "--segment-images", "50", *words) == 0
    log = (out / "logs" / "good_1.log").read_text()
    parts = ("good_1, windows", "good_1, segment 1 of 2", "good_1, segment 2 of 2", "good_1, joined")
    assert all(log.count(part) == 1 for part in parts)
    assert "--predictions" in (out / "good_1" / "words").read_text()
    assert "segment" not in (out / "logs" / "good_2.log").read_text() and not (out / ".fleet").exists()
    assert run(runs, out, "--segment-images", "60", *words) == 0
    assert all(row["skipped"] for row in told(out).values())  # it makes no difference to the results
