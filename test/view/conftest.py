"""A small folder of results to look at, and a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import made_results as made
import pytest
from browser import Browser, chromium
from marks import gives


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without viser nothing can be viewed: a failure where the project installs it, a skip with the reason elsewhere."""
    try:
        import viser  # noqa: F401
    except ImportError:
        if os.environ.get("CI") == "true":
            return
        reason = "viser is not installed: pip install '.[view]'"
        for item in items:
            if item.path.parent == Path(__file__).parent and item.path.name != "test_content.py":
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `come_ros bag -o out`: 12 frames of a wall, with truth."""
    return made.bag_results(tmp_path_factory.mktemp("view") / "out", 12)


@pytest.fixture(scope="module")
@gives("slow")
def browser() -> Iterator[Browser]:
    with Browser(chromium(), 900, 640) as one:
        yield one
