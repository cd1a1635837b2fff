"""The commit of the code, for cards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from come_ros.tools import checkout


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_packages_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "repository" / "come_ros"
    code = package / "tools" / "checkout.py"
    code.parent.mkdir(parents=True)
    for path in (code, package / "__init__.py"):
        path.write_text("")
    monkeypatch.setattr(checkout, "__file__", str(code))
    assert checkout.commit() == "", "no repository"
    git(package.parent, "init", "-q")
    (package.parent / "other").write_text("")
    git(package.parent, "add", "other")
    git(package.parent, "commit", "-qm", "of another project")
    assert checkout.commit() == "", "the package is not in it"
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-qm", "with the package")
    assert checkout.commit() == git(package.parent, "rev-parse", "--short=12", "HEAD")
    (package / "__init__.py").write_text("changed = True")
    assert checkout.commit().endswith("+")
