"""The page without a server: opened from its folder in a real browser it shows the scene, asks for nothing outside, and can be used."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace
from pathlib import Path

import made_results as made
import numpy as np
import pytest
from browser import Browser
from PIL import Image

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros.errors import OutputError
from come_ros.files import read_ply
from come_ros.results import open_results
from come_ros.view.content import Content, content_of
from come_ros.view.page import write_page
from come_ros.view.scene import ViewError


@pytest.fixture(scope="module")
def content(out: Path) -> Content:
    return replace(content_of(open_results(out)), title="a </script> & title")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, content: Content) -> Path:
    folder = tmp_path_factory.mktemp("page") / "view"
    write_page(content, folder)
    return folder


def test_the_folder_holds_all_it_needs(page: Path, content: Content) -> None:
    assert sorted(p.name for p in page.iterdir()) == ["LICENSE-viser", "index.html", "pictures", "points.ply"]
    assert "Apache License" in (page / "LICENSE-viser").read_text()
    assert len(list((page / "pictures").iterdir())) == 12
    points = read_ply(page / "points.ply")
    assert len(points) == len(content.cloud) and (points["x"] == content.cloud.places[:, 0]).all()


def test_the_same_results_give_the_same_page(page: Path, content: Content, tmp_path: Path) -> None:
    write_page(content, tmp_path / "again")
    for file in page.rglob("*"):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(page)).read_bytes() == file.read_bytes(), file.name


def test_without_viser_one_line_says_so(content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ViewError, match=r"needs the Python package viser.*come_ros\[view\]"):
        write_page(content, tmp_path / "view")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(content: Content, tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="cannot write the folder"):
        write_page(content, tmp_path / "view")
    assert [p.name for p in tmp_path.rglob("*")] == ["view", "mine"]


def test_it_opens_from_its_folder_and_asks_for_nothing_outside(page: Path, browser: Browser, content: Content) -> None:
    browser.open((page / "index.html").as_uri())
    browser.wait_for("document.querySelectorAll('canvas[data-engine], #come-keyframe').length === 2")
    assert browser.evaluate("document.querySelector('#come-about h1').textContent") == content.title
    browser.wait_for("document.querySelector('#come-pictures img').naturalWidth > 0")
    browser.wait_for("document.querySelector('.mantine-Slider-root') !== null")  # the replay's: the scene has been read

    def share_drawn() -> float:
        picture = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB")).astype(int)
        middle = picture[100:560, 450:850]  # right of the panels
        return float((middle.min(axis=-1) < 200).mean())

    deadline = time.monotonic() + 120
    while (share := share_drawn()) < 0.05 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert share >= 0.05, f"nothing of the scene is drawn: {share:.1%}; {browser.errors}"
    browser.evaluate(
        "(() => { const s = document.querySelector('#come-keyframe'); s.value = 7; s.dispatchEvent(new Event('input')); })()"
    )
    assert "keyframe 8 of 12" in browser.evaluate("document.querySelector('#come-pictures p').textContent")
    browser.wait_for("document.querySelector('#come-pictures img').src.endsWith('pictures/007.jpg')")
    assert browser.evaluate("document.querySelector('#come-pictures a').href.endsWith('pictures/007.jpg')")
    words = browser.evaluate("document.querySelector('#come-about details').textContent")
    assert "Space stops it" in words and "a click on one does nothing here" in words
    assert browser.evaluate("document.querySelector('a.button').getAttribute('href')") == "points.ply"
    assert browser.requests and all(url.startswith(page.as_uri()) for url in browser.requests), browser.requests
    assert not browser.errors
    assert browser.evaluate("document.querySelector('canvas[data-engine]').height") > made.HEIGHT
