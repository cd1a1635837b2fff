"""Measured results say what made them, and no page quotes one of older weights."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark import stamped

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    p
    for p in ROOT.rglob("README.md")
    if not any(part.startswith(".venv") or part in ("out", "build", "install") for part in p.parts)
]
EARLIER = "measured with earlier weights"


def test_every_result_is_stamped_and_every_stamp_has_its_files() -> None:
    assert stamped.unstamped() == []
    found = list(stamped.results())
    assert {r.area for r in found} == set(stamped.AREAS)
    missing = [
        name for r in found for name in r.stamp.files if not (stamped.BENCHMARK / r.area / "results" / name).is_file()
    ]
    assert not missing and all(r.stamp.command and r.stamp.commit and r.stamp.files for r in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_quotes_results_of_older_weights(page: Path) -> None:
    """Unless the same paragraph or table says so. The index lists them all, with what makes them again."""
    stale = {f"{r.area}/results/{f}" for r in stamped.results() if r.older_weights for f in r.stamp.files}
    text = re.sub(r"<!-- results: .*?<!-- /results -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    quoted = [name for part in re.split(r"\n\s*\n", text) if EARLIER not in part for name in stale if name in part]
    assert not quoted, (
        f"measured with older weights than the shipped ones: measure again, leave out, or add {EARLIER!r}"
    )


def test_a_result_is_written_with_what_made_it(tmp_path: Path) -> None:
    stamped.write_result(tmp_path, "one", {"a": 1}, "# One\n", weights=stamped.TINY, command="python one.py")
    assert json.loads((tmp_path / "one.json").read_text()) == {"a": 1}
    stamp = stamped.Stamp(**json.loads((tmp_path / "one.stamp.json").read_text()))
    assert stamp.files == ["one.json", "one.md"] and stamp.command == "python one.py"
    assert stamp.weights == {stamped.TINY[0]: stamped.sha256(stamped.MODELS / stamped.TINY[0])}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ", stamp.date) and "cores" in stamp.machine


def test_a_result_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    data = {"said": f"come_ros in {ROOT}/come_ros", "read": f"{stamped.shared()}/data/real"}
    stamped.write_result(tmp_path, "one", data, f"| {ROOT}/come_ros |\n", command="python one.py")
    assert json.loads((tmp_path / "one.json").read_text()) == {
        "said": "come_ros in ./come_ros",
        "read": "SHARED/data/real",
    }
    assert (tmp_path / "one.md").read_text() == "| ./come_ros |\n"


def test_no_tracked_file_names_a_folder_of_the_machine() -> None:
    """Of this one, or of those that results and pages were written on."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    pattern = rf"{re.escape(str(ROOT))}/|/(work|root|check)/|/home/[^/]+/"
    found = subprocess.run(
        ["git", "grep", "-nIE", pattern, "--", ".", ":!test/test_results.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 1, found.stdout + found.stderr


def test_other_weights_make_a_result_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamped, "shipped", lambda: {"a": "1", "b": "2"})
    stamp = stamped.Stamp("python x.py", "HEAD", "2026-01-01T00:00Z", "m", {"a": "1", "b": "2"}, ("x.md",))
    fresh = stamped.Result("speed", "x", stamp)
    assert fresh.older_weights == ()
    older = dataclasses.replace(fresh, stamp=dataclasses.replace(stamp, weights={"a": "1", "b": "0", "gone": "3"}))
    assert older.older_weights == ("b", "gone") and "stale" in older.state()
    if shutil.which("git") and (ROOT / ".git").exists():
        assert fresh.newer_code == 0 and fresh.state() == fresh.state(counted=True) == "current"
        assert dataclasses.replace(fresh, stamp=dataclasses.replace(stamp, commit="0" * 12)).newer_code is None


def test_the_commands_of_stale_results_are_listed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stamp = stamped.Stamp("python x.py", "HEAD", "2026-01-01T00:00Z", "m", {"a": "0"}, ("x.md",))
    found = [stamped.Result("speed", name, stamp) for name in ("x", "y")]
    fresh = stamped.Result("accuracy", "z", dataclasses.replace(stamp, command="python z.py", weights={"a": "1"}))
    monkeypatch.setattr(stamped, "shipped", lambda: {"a": "1"})
    monkeypatch.setattr(stamped, "results", lambda: iter([*found, fresh]))
    assert stamped.main(["stale"]) == 0
    assert capsys.readouterr().out == "python x.py  # speed/x, speed/y\n"


@pytest.mark.slow
def test_what_a_command_writes_is_kept_if_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamped, "BENCHMARK", tmp_path)
    (tmp_path / "speed" / "results").mkdir(parents=True)
    write = "import sys, pathlib; o = pathlib.Path(sys.argv[1]); (o / 'metrics.md').write_text('m'); (o / 'p.png').write_text('p')"
    command = ["run", "speed/x", "--weights", *stamped.TINY, "--", sys.executable, "-c"]
    assert stamped.main([*command, write, "OUT"]) == 0
    folder = tmp_path / "speed" / "results"
    assert sorted(p.name for p in folder.iterdir()) == ["x.md", "x.stamp.json", "x_p.png"]
    stamp = json.loads((folder / "x.stamp.json").read_text())
    assert (
        stamp["files"] == ["x.md", "x_p.png"]
        and stamp["command"].endswith(" OUT")
        and list(stamp["weights"]) == [*stamped.TINY]
    )
    assert str(tmp_path) not in stamp["command"]
    assert stamped.main([*command, "raise SystemExit(3)", "OUT"]) == 1
    assert stamped.main(["run", "nowhere/x", "--", "true"]) == 1
    assert (folder / "x.md").read_text() == "m"
