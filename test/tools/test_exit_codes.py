"""The page of exit codes (come_ros/tools/README.md): commands are run into each of them but 70, for which test_lifecycle.py has a node."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import write_images

from come_ros.tools import bench, calibrate, cli

PAGE = Path(__file__).resolve().parents[2] / "come_ros" / "tools" / "README.md"
FAST = ["--set", "backbone=fake", "--set", "window.size=2", "--set", "keyframe.mode=every"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("exit_codes") / "images", 4, size=(80, 60))


def page() -> dict[int, str]:
    """Code -> what the page says of it."""
    section = PAGE.read_text().split("## Exit codes")[1].split("\n## ")[0]
    return {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE)}


def code_of(*words: str) -> int:
    """Of `come_ros WORDS...` in this process."""
    try:
        return cli.main(list(words))
    except SystemExit as end:
        return int(end.code or 0)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.slow
def test_done_refused_and_mistyped(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert code_of("--help") == code_of("bag", "--help") == code_of("--version") == 0
    assert code_of("bag", str(images), "-o", out, "--no-bag", "--no-view", *FAST) == 0
    capsys.readouterr()
    refused = (
        (["bag", str(tmp_path / "nowhere"), "-o", out], "nowhere"),
        (["bag", str(images), "-o", out, *FAST], "already holds results"),
        (["bag", str(images), "-o", str(tmp_path / "new"), *FAST, "--set", "window.size=99"], "2 .. 64"),
        (["bag", str(images), "-o", str(tmp_path / "new"), "--weights", str(images / "00.png")], "00.png"),
        (["bench", "--repeats", "0"], "1 or more"),
        (["eval", "--set", "accelerator.name=com"], "come"),
        (["calibrate"], "-o"),
        (["demo", str(tmp_path / "nowhere")], "nowhere"),
        (["export", str(tmp_path / "nowhere"), "--to", "tum", "-o", str(tmp_path / "new")], "nowhere"),
        (["doctor", "--set", "window.size"], "NAME=VALUE"),
        (["distill", "-o", out, "--source", str(tmp_path / "nowhere")], "nowhere"),
        (["adapt", "-o", str(tmp_path / "new"), "--source", str(images), "--held", "1"], "0.1 to 0.9"),
        (["train-pace", "-o", out, "--source", str(tmp_path / "nowhere")], "nowhere"),
        (["train", "-o", str(tmp_path / "new"), "--watch", str(images)], "--watch"),
        (["view", str(tmp_path / "nowhere")], "nowhere"),
        (["play", str(tmp_path / "nowhere")], "nowhere"),
        (["fleet", str(images), "-o", str(tmp_path / "new"), "--workers", "-1"], "--workers is -1"),
        (["monitor", "--timeout", "0"], "--timeout is 0"),
        (["params", "explain", "window.sise"], "window.size"),
    )
    assert {words[0] for words, _ in refused} == set(cli.COMMANDS) - {
        "node",
        "completion",
    }  # the latter: no mistake but a wrong shell
    for words, told in refused:
        assert code_of(*words) == 1, words
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"come_ros {words[0]}: ")]
        assert len(lines) == 1 and told in lines[0], (words, lines)
    for words in (
        ["bags"],
        ["bag"],
        ["bag", str(images), "-o", out, "--nonsense"],
        ["bench", "--precision", "fp64"],
        ["export", out, "--to", "obj", "-o", out],
        ["completion", "cmd"],
        ["node", "--nonsense"],
        *([name, "--nonsense"] for name in cli.COMMANDS if name != "node"),
    ):
        assert code_of(*words) == 2, words


@pytest.mark.slow
def test_results_of_a_run_that_lacks_something_are_kept(images: Path, tmp_path: Path, capsys: Any) -> None:
    truth, out = tmp_path / "far.tum", tmp_path / "out"
    truth.write_text("1000000000 0 0 0 0 0 0 1\n1000000001 0 0 0 0 0 0 1\n")
    assert (
        code_of("bag", str(images), "-o", str(out), "--fps", "10", "--gt", str(truth), "--no-bag", "--no-view", *FAST)
        == 1
    )
    assert str(out) in capsys.readouterr().err and (out / "map.ply").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_is_complete(number: int, images: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from come_ros.datasets import image_folder
    from come_ros.tools.bench import model

    read = image_folder.ImageFolder.frame

    def frame(self: Any, index: int) -> Any:
        if index == 2:
            send(number)
        return read(self, index)

    monkeypatch.setattr(image_folder.ImageFolder, "frame", frame)
    out = tmp_path / "out"
    assert code_of("bag", str(images), "-o", str(out), "--no-bag", "--no-view", *FAST) == 128 + number
    assert (out / "trajectory.tum").exists() and str(out) in capsys.readouterr().err

    def measure(options: Any) -> Iterator[dict[str, Any]]:
        yield {"rows": ["one"]}
        send(number)
        raise AssertionError("the signal must have ended it")

    monkeypatch.setattr(model, "measure", measure)
    monkeypatch.setattr(bench.report, "report", lambda result: f"report of {result['rows']}")
    assert code_of("bench", "--json", str(tmp_path / "bench.json")) == 128 + number
    told = capsys.readouterr()
    assert (
        "report of ['one']" in told.out
        and "what was complete follows" in told.err
        and (tmp_path / "bench.json").exists()
    )

    def entropy(model: Any, windows: Any, options: Any) -> Iterator[np.ndarray]:
        yield np.linspace(0.2, 0.9, 6)
        send(number)
        raise AssertionError("the signal must have ended it")

    monkeypatch.setattr(calibrate, "measure", entropy)
    plan = tmp_path / "plan.json"
    assert code_of("calibrate", "-o", str(plan)) == 128 + number
    assert plan.exists() and f"1 of 16 windows are in {plan}" in capsys.readouterr().err


COMMAND = """
import os, signal, sys, time, types
from pathlib import Path
from come_ros.interrupts import Interrupts
from come_ros.tools import cli

def run(options):
    with Interrupts() as stopped:
        Path("ready").touch()
        try:
            with stopped.raising():
                time.sleep(60)
        finally:
            os.kill(os.getpid(), stopped.number)
            print("a table")
            print("a bar", file=sys.stderr)
            Path("saved").touch()

tool = types.ModuleType("come_ros.tools.long")
tool.add_arguments, tool.run = (lambda parser: None), run
sys.modules[tool.__name__], cli.COMMANDS["long"] = tool, ""
sys.exit(cli.main(["long"]))
"""


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_terminal_or_a_second_signal(closed: bool, tmp_path: Path) -> None:
    """The terminal can no longer be written to, and sends SIGHUP twice: what is complete is kept all the same."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), env={**os.environ, "PYTHONPATH": str(PAGE.parents[2])},
    )  # fmt: skip
    os.close(theirs)
    while not (tmp_path / "ready").exists():
        assert running.poll() is None, os.read(ours, 10_000)
        time.sleep(0.05)
    if not closed:
        running.send_signal(signal.SIGTERM)
    else:
        os.close(ours)
    assert running.wait(50) == 128 + (signal.SIGHUP if closed else signal.SIGTERM)
    assert (tmp_path / "saved").exists() == closed
    if not closed:
        os.close(ours)


def test_a_reader_that_has_gone_and_a_full_disk() -> None:
    command = [sys.executable, "-m", "come_ros.tools.cli", "node", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (gone.returncode, gone.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("come_ros node: cannot write its output: No space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_program_without_stdin_stdout_or_stderr_does_its_work(
    closed: tuple[int, ...], images: Path, tmp_path: Path
) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "come_ros.tools.cli",
        "bag",
        str(images),
        "-o",
        str(out),
        "--no-bag",
        "--no-view",
        *FAST,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=close)
    assert done.returncode == 0 and (out / "map.ply").exists() and "Traceback" not in done.stderr
    assert ("images" in done.stdout) == (1 not in closed)


@pytest.mark.slow
def test_the_home_folder_is_meant_where_no_shell_puts_it_in(
    images: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").symlink_to(images)
    assert code_of("bag", "~/photographs", "-o", "~/out", "--no-bag", "--no-view", *FAST) == 0
    assert (tmp_path / "out" / "map.ply").exists() and not (tmp_path / "~").exists()
    assert code_of("bag", str(images), "-o", "~/new", "--no-bag", "--set", "weights=~/none.safetensors") == 1
    assert f"{tmp_path}/none.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("-o", ""), ("--output", " "), ("--output=",)])
def test_an_empty_place_for_results_is_refused(words: tuple[str, ...], images: Path, capsys: Any) -> None:
    assert code_of("bag", str(images), *words, *FAST) == 2
    assert "-o is empty" in capsys.readouterr().err


def test_the_page_has_each_code_and_no_other() -> None:
    assert set(page()) == {
        0,
        1,
        2,
        70,
        *(128 + s for s in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)),
    }
