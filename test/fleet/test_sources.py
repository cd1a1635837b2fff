"""Which recordings are found, what their results are called, and when a recording counts as the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from recordings import write_images

from come_ros.errors import ConfigError, DatasetError
from come_ros.fleet.record import Inputs, inputs_of
from come_ros.fleet.sources import Source, content_of, find_sources, names_of, state_of, without_results


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two recordings with the same name, one with another, and what is none."""
    for name in ("a/cam", "b/cam", "c"):
        write_images(tmp_path / "runs" / name, 2)
    (tmp_path / "runs" / "notes.md").write_text("no recording")
    return tmp_path / "runs"


def paths(words: list[str]) -> list[str]:
    return [source.path for source in find_sources(words)]


def test_patterns_folders_and_lists_name_the_same_recordings(runs: Path) -> None:
    every = [str(runs / name) for name in ("a/cam", "b/cam")]
    assert paths([str(runs / "*" / "cam")]) == every
    assert paths([str(runs / "**" / "cam"), every[0]]) == every  # each once
    assert paths([str(runs / "a")]) == every[:1]
    listed = runs / "runs.txt"
    listed.write_text(f"# mine\na/cam --topic '/left image'\n\n{every[1]}\n", encoding="utf-8")
    found = find_sources([str(listed)])
    assert [source.path for source in found] == every
    assert found[0].options == ("--topic", "/left image") and not found[1].options


def test_a_folder_of_bags_is_many_recordings_and_one_of_parts_is_one(tmp_path: Path) -> None:
    for name in ("a.mcap", "b_0.mcap", "b_1.mcap", "c.bag", "notes.md"):
        (tmp_path / name).touch()
    assert paths([str(tmp_path)]) == [str(tmp_path / name) for name in ("a.mcap", "b_0.mcap", "b_1.mcap", "c.bag")]
    (tmp_path / "a.mcap").unlink()
    (tmp_path / "c.bag").unlink()
    assert paths([str(tmp_path)]) == [str(tmp_path)]
    (tmp_path / "c.mcap").touch()
    (tmp_path / "metadata.yaml").touch()
    assert paths([str(tmp_path)]) == [str(tmp_path)]


def test_results_never_become_recordings(runs: Path) -> None:
    sources = find_sources([str(runs / "**" / "cam")])
    assert [source.path for source in without_results(sources, runs / "a")] == [str(runs / "b/cam")]
    for out, text in ((runs / "b/cam/out", "lies in the recording"), (runs, "all recordings lie in")):
        with pytest.raises(ConfigError, match=text):
            without_results(sources, out)


def test_a_recording_is_itself_even_where_it_holds_others(runs: Path) -> None:
    write_images(runs / "c" / "inner", 2)
    assert paths([str(runs / "c")]) == [str(runs / "c")]


def test_what_does_not_exist_is_a_task_that_will_fail(runs: Path) -> None:
    assert paths([str(runs / "d.mcap")]) == [str(runs / "d.mcap")]


@pytest.mark.parametrize(
    "make",
    [lambda runs: runs / "*.bag", lambda runs: runs / "*.md", lambda runs: runs.parent, lambda runs: runs / "l.txt"],
)
def test_where_recordings_are_expected_and_missing_is_an_error(runs: Path, make: object) -> None:
    (runs / "l.txt").write_text("# nothing\n")
    with pytest.raises(DatasetError, match=r"matches|holds no recording|names no recording"):
        find_sources([str(make(runs))])  # type: ignore[operator]


def test_a_line_that_is_not_words_and_two_different_options_are_refused(runs: Path) -> None:
    listed = runs / "l.txt"
    listed.write_text("a/cam 'open\n")
    with pytest.raises(DatasetError, match="line 1"):
        find_sources([str(listed)])
    listed.write_text("a/cam --every 2\n")
    with pytest.raises(ConfigError, match="named twice"):
        find_sources([str(listed), str(runs / "a" / "cam")])


def test_names_are_those_of_recordings_stay_and_never_collide(runs: Path) -> None:
    sources = [Source(str(runs / name)) for name in ("a/cam", "b/cam", "c")]
    assert list(names_of(sources, {}, ["c"]).values()) == ["cam", "b_cam", "runs_c"]
    known = {os.path.realpath(runs / "b/cam"): "cam"}
    assert list(names_of(sources, known).values()) == ["a_cam", "cam", "c"]
    odd = Source(str(runs / ".. odd/nämé?.mcap"))
    assert names_of([odd], {})[odd] == "nämé_.mcap"


def test_a_recording_is_the_same_until_its_content_changes(runs: Path) -> None:
    place, copy = runs / "c", runs.parent / "copy"
    shutil.copytree(place, copy)
    os.utime(copy / "00.png", (1, 1))
    assert state_of(copy) != state_of(place) and content_of(copy) == content_of(place)
    (copy / "00.png").rename(copy / "01.jpg")
    assert content_of(copy) != content_of(place)
    with pytest.raises(OSError):
        state_of(runs / "nowhere")


def test_results_depend_on_what_lies_next_to_the_weights_if_it_may_be_read(tmp_path: Path) -> None:
    """Whether a new predictor, say, makes them again: no parameter names it."""
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    source = Source(str(write_images(tmp_path / "cam", 1)))

    def now(accelerator: str) -> Inputs:
        return inputs_of(source, {"weights": str(weights), "accelerator.name": accelerator}, ())

    names = ("come", "pace", "none")
    without = {name: now(name) for name in names}
    (tmp_path / "come_w.safetensors").write_bytes(b"a predictor")
    (tmp_path / "come_v.safetensors").write_bytes(b"of others")
    told = {name: without[name].changes(now(name), str) for name in names}
    there = [f"the file {tmp_path / 'come_w.safetensors'}"]
    assert told == {"come": there, "pace": there, "none": []}
    before = now("come")
    (tmp_path / "come_w.safetensors").write_bytes(b"another predictor")
    assert before.changes(now("come"), str) == there
