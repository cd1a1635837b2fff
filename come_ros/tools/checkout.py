"""Which code this is: the commit of the checkout that it runs from, for cards of what was made with it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """12 digits, then "+" if files of the package differ from it; empty where the code is installed without its repository."""
    package = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the repository around it is another project's
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
