"""A few hundred damaged recordings of all kinds; benchmark/robustness/fuzz_recordings.py takes ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from fuzz_recordings import Tally, make_originals, one_case, quiet, read_all


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_originals(tmp_path_factory.mktemp("originals"))


def test_the_originals_are_sound(originals: dict[str, Path]) -> None:
    for name, path in originals.items():
        assert name == "parameters" or read_all(path) > 2, name


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_damaged_recordings_are_read_as_far_as_they_are_whole(
    originals: dict[str, Path], tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("come_ros.tools.bag.job.draw", lambda path, overview, title: path.write_bytes(b"picture"))
    monkeypatch.setattr("come_ros.tools.report.view.write_view", lambda results: "")
    tally = Tally()
    with quiet():
        for seed in range(100 * part, 100 * part + 100):
            one_case(seed, originals, tmp_path / "work", tally, tool=seed % 40 == part)
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.cases == 100 and tally.read > 30 and tally.refused > 5
