"""--quiet and --json, alike in all commands: one JSON object on standard output and nothing else, and no bars."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from recordings import write_images

from come_ros import progress
from come_ros.datasets.rosbag import Bag
from come_ros.tools import bench, calibrate, cli, eval, export, train
from come_ros.tools.report import next_steps
from come_ros.tools.result import print_result

FAST = ["--set", "backbone=fake", "--set", "window.size=2", "--set", "keyframe.mode=every"]


class Terminal(io.StringIO):
    """A standard error that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("output") / "images", 4, size=(80, 60))


@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - {"node"}))
def test_every_command_takes_both(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert " --quiet " in text and " --json" in text


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What the command prints, whole, as JSON; nothing on standard error."""
    assert cli.main([*words, "--json"]) == 0, words
    told = capsys.readouterr()
    assert "\r" not in told.err
    return json.loads(told.out)


@pytest.mark.slow
def test_the_whole_answer_is_one_object(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    made = answer(capsys, "bag", str(images), "-o", str(out), "--fps", "10", "--no-view", *FAST)
    assert made["frames"]["read"] == 4 and "metrics.json" in made["files"] and made["folder"] == str(out)
    assert made["verdict"]["level"] == json.loads((out / "metrics.json").read_text())["verdict"]["level"]
    written = answer(capsys, "export", str(out), "--to", "tum", "-o", str(tmp_path / "tum"))
    assert set(written["files"]) == {"export.json", "trajectory.tum"} and written["poses"] == 4
    if importlib.util.find_spec("viser"):
        page = answer(capsys, "view", str(out), "--save", str(tmp_path / "page"))["page"]
        assert Path(page).is_file()
    with Bag(out / "output", "/camera/image_raw") as bag:
        assert len(bag) == 4


def test_parameters_and_completion_are_objects_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = answer(capsys, "params", "explain", "window.size")
    assert one["default"] == one["value"]
    assert answer(capsys, "params", "write", "--set", "window.size=5") == {"window.size": 5}
    file = tmp_path / "my.yaml"
    assert answer(capsys, "params", "write", str(file), "--set", "window.size=5")["file"] == str(file)
    pytest.importorskip("shtab")
    assert "come_ros" in answer(capsys, "completion", "bash")["script"]


def test_bench_prints_its_figures_or_writes_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from come_ros.tools.bench import model

    monkeypatch.setattr(model, "measure", lambda options: iter([{"rows": [1]}]))
    monkeypatch.setattr(bench.report, "report", lambda result: f"report of {result['rows']}")
    assert answer(capsys, "bench") == {"rows": [1]}
    assert cli.main(["bench", "--json", str(tmp_path / "bench.json")]) == 0
    assert capsys.readouterr().out == "report of [1]\n" and json.loads((tmp_path / "bench.json").read_text()) == {
        "rows": [1]
    }


@pytest.mark.parametrize("quiet", [False, True])
def test_bars_and_hints_are_for_terminals_and_not_with_quiet(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.quietly(quiet):
        for _ in progress.bar([1, 2], desc="counting", unit="sheep"):
            pass
        with progress.doing("waiting"):
            pass
        next_steps.tell(["next: sleep"])
    shown = sys.stderr.getvalue()
    assert all((word in shown) != quiet for word in ("counting", "sheep", "waiting", "next: sleep"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in progress.bar([1, 2], desc="counting"):
        pass
    assert sys.stderr.getvalue() == "" and not progress.is_quiet()


def test_the_option_reaches_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    for name in ("eval", "export", "train", "calibrate", "bench"):
        tool = importlib.import_module(f"come_ros.tools.{name}")
        assert tool in (eval, export, train, calibrate, bench)
        monkeypatch.setattr(tool, "run", lambda options: seen.append(progress.is_quiet()))
        words = {"export": ["out", "--to", "tum", "-o", "x"], "train": ["-o", "x"]}.get(name, [])
        assert cli.main([name, *words, "--quiet"]) == cli.main([name, *words]) == 0
    assert seen == 5 * [True, False]


def test_no_module_draws_bars_of_its_own() -> None:
    package = Path(progress.__file__).parent
    others = [
        path for path in package.rglob("*.py") if "import tqdm" in path.read_text() and path != Path(progress.__file__)
    ]
    assert others == []


def test_numbers_that_are_not_finite_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    options = cli.command_parser(export, "export").parse_args(["out", "--to", "tum", "-o", "x", "--json"])
    print_result(options, {"a": [float("nan"), 0.1234567], "b": (float("inf"), 3)}, "words")
    assert json.loads(capsys.readouterr().out) == {"a": [None, 0.1234567], "b": [None, 3]}
    options.json = False
    print_result(options, {}, "words")
    assert capsys.readouterr().out == "words\n"
