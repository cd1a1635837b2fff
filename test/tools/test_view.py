"""`come_ros view` as a command: what it says of mistakes, the page that it saves, and serving until Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import made_results as made
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros.tools import cli


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "give either the folder of results to show, or --live"),
        (["somewhere", "--live"], "not both (somewhere)"),
        (["--live", "--save", "page"], "--save has no effect on --live"),
        (["somewhere"], "somewhere does not exist"),
        (["somewhere", "--port", "70000"], "--port is 70000, but must lie in 0 .. 65535"),
        (["somewhere", "--max-points", "3"], "--max-points is 3, but must be 1000 or more"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("viser", reason="viser is not installed: pip install '.[view]'")
    assert cli.main(["view", *words]) == 1
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_without_viser_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    assert cli.main(["view", "somewhere"]) == 1
    assert "come_ros[view]" in capsys.readouterr().err


def test_a_page_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("viser", reason="viser is not installed: pip install '.[view]'")
    out = made.bag_results(tmp_path / "out", 3)
    assert cli.main(["view", str(out), "--save", str(tmp_path / "page")]) == 0
    assert "index.html: open it in a browser" in capsys.readouterr().out
    assert (tmp_path / "page" / "index.html").stat().st_size > 500_000


@pytest.mark.slow
def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("viser", reason="viser is not installed: pip install '.[view]'")
    out = made.bag_results(tmp_path / "out", 3)
    command = [sys.executable, "-m", "come_ros.tools.cli", "view", str(out), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found and "Ctrl-C ends it" in line
        with urllib.request.urlopen(found[0], timeout=60) as page:
            assert page.status == 200 and b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
