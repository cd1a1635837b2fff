"""Plain English in what people read: docstrings, comments, messages, help, pages. Words that the ROS and PyTorch docs do not use."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BETTER = {
    r"anew": "again",
    r"by lot": "at random",
    r"lots": "random groups",
    r"be had": "be available",
    r"null models?": "trivial baseline",
    r"beside": "next to, or besides",
    r"whoever": "name who it is",
    r"somebody": "name who it is",
    r"so manieth": "every nth",
    r"upon": "on",
    r"thereof|whereof|therein|wherein|hither|lest": "a plain conjunction",
    r"is told of|are told of|tells of": "reports, or describes",
    r"goes? on from": "continues from",
    r"lets? go of": "releases",
    r"what stands against": "the reason",
    r"is no good|are no good": "is invalid",
}
WORDS = re.compile(rf"\b(?:{'|'.join(BETTER)})\b", re.IGNORECASE)
PAGES = (".md", ".rst", ".yaml", ".yml", ".xml", ".cfg", ".toml", ".txt", ".rviz")
OTHERS = re.compile(r"test/benchmark/\w+/results/|LICENSE")  # results are what a run has written


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what people read in a file: everything of a page; docstrings, comments and strings of a program."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.split("\n"), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


def files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    wanted = [name for name in listed if name.endswith((".py", *PAGES)) and not OTHERS.match(name)]
    return [ROOT / name for name in wanted if (ROOT / name).is_file() and name != "test/test_words.py"]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: which files are ours is not known")
def test_no_file_uses_words_that_readers_stumble_over() -> None:
    paths = files()
    assert len(paths) > 300
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match.group()!r} -> "
        + next(better for word, better in BETTER.items() if re.fullmatch(word, match.group(), re.IGNORECASE))
        for path in paths
        for line, text in prose_of(path)
        for match in WORDS.finditer(text)
    ]
    assert not found, "\n".join(found)


def test_words_are_found_wherever_people_read_them_and_nowhere_else(tmp_path: Path) -> None:
    program = tmp_path / "a.py"
    program.write_text(
        '"""Starts\n    anew."""\nbeside = 1  # beside it\ntold = f"cannot {beside} be had"\n\ndef anew(): return beside\n'
    )
    assert [m.group() for _, text in prose_of(program) for m in WORDS.finditer(text)] == ["beside", "anew", "be had"]
    page = tmp_path / "page.md"
    page.write_text("besides, a slot\nby lot\n")
    assert [(line, m.group()) for line, text in prose_of(page) for m in WORDS.finditer(text)] == [(2, "by lot")]
