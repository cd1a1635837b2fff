"""The served view: its controls change what is drawn, and in a real browser a click on a camera shows its pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_results as made
import numpy as np
import pytest
from browser import Browser

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros.results import open_results
from come_ros.view.content import Content, content_of
from come_ros.view.scene import ViewError, viser_server
from come_ros.view.server import Viewer, batches_of


@pytest.fixture(scope="module")
def content(out: Path) -> Content:
    return content_of(open_results(out))


@pytest.fixture
def viewer(content: Content) -> Iterator[Viewer]:
    with viser_server("127.0.0.1", 0) as server:
        viewer = Viewer(server, content)
        settled(viewer)
        yield viewer
        viewer.close()


def settled(viewer: Viewer) -> None:
    deadline = time.monotonic() + 60
    while not viewer.settled and time.monotonic() < deadline:
        time.sleep(0.02)
    assert viewer.settled


def drawn(viewer: Viewer) -> int:
    """Points that are visible."""
    return sum(len(node.points) for node in viewer.cloud_nodes if node.visible)


def control(viewer: Viewer, label: str) -> Any:
    """A control by its label."""
    handles = viewer.server.gui._gui_input_handle_from_uuid.values()
    return next(h for h in handles if h.label == label)


def test_all_points_are_drawn_in_the_steps_of_the_replay(viewer: Viewer, content: Content) -> None:
    assert drawn(viewer) == viewer.points == len(content.cloud) and len(viewer.cloud_nodes) == len(batches_of(content))
    assert viewer.server.get_host() == "127.0.0.1"


def test_controls_of_the_cloud_hide_and_colour_points(viewer: Viewer, content: Content) -> None:
    total = len(content.cloud)
    control(viewer, "hide least sure, %").value = 50
    settled(viewer)
    assert drawn(viewer) == pytest.approx(total / 2, rel=0.05)
    control(viewer, "hide least sure, %").value = 0
    control(viewer, "share drawn, %").value = 25
    settled(viewer)
    assert drawn(viewer) == pytest.approx(total / 4, rel=0.02)
    control(viewer, "share drawn, %").value = 100
    control(viewer, "seen within, %").value = 60
    settled(viewer)
    assert 0 < drawn(viewer) < total
    control(viewer, "seen within, %").value = 100
    settled(viewer)
    before = np.concatenate([node.colors for node in viewer.cloud_nodes])
    control(viewer, "colour by").value = "height"
    settled(viewer)
    after = np.concatenate([node.colors for node in viewer.cloud_nodes])
    assert before.shape == after.shape and (before != after).mean() > 0.5
    size = viewer.cloud_nodes[0].point_size
    control(viewer, "point size").value = 2.0
    settled(viewer)
    assert viewer.cloud_nodes[0].point_size == pytest.approx(2 * size)


def test_the_slider_goes_back_in_time(viewer: Viewer, content: Content) -> None:
    control(viewer, "time, s").value = content.duration_s / 2
    half = int((content.cloud.seen_s <= content.duration_s / 2).sum())
    assert 0 < drawn(viewer) < len(content.cloud) and drawn(viewer) == pytest.approx(half, rel=0.2)
    assert 0 < sum(node.visible for node in viewer.camera_nodes) < 6
    control(viewer, "all cameras").value = True
    assert sum(node.visible for node in viewer.camera_nodes) == 6
    control(viewer, "time, s").value = content.duration_s
    assert drawn(viewer) == len(content.cloud) and all(node.visible for node in viewer.camera_nodes)
    control(viewer, "cameras").value = False
    assert not any(node.visible for node in viewer.camera_nodes)


def test_of_many_cameras_some_are_drawn_and_the_slider_reaches_all(content: Content) -> None:
    close = tuple(replace(k, pose=content.keyframes[0].pose) for k in content.keyframes)
    with viser_server("127.0.0.1", 0) as server:
        viewer = Viewer(server, replace(content, keyframes=close))
        visible = lambda: [i for i, node in enumerate(viewer.camera_nodes) if node.visible]  # noqa: E731
        assert visible() == [0] and control(viewer, "all cameras").visible
        control(viewer, "keyframe").value = 8
        assert viewer.chosen == 7 and visible() == [0, 7]
        control(viewer, "all cameras").value = True
        assert len(visible()) == 12
        viewer.close()


def test_a_port_that_is_taken_is_named() -> None:
    with viser_server("127.0.0.1", 0) as server:
        port = server.get_port()
        with pytest.raises(ViewError, match=rf"port {port}: .*choose another --port"), viser_server("127.0.0.1", port):
            pass
    with pytest.raises(ViewError, match=r"cannot serve at 203\.0\.113\.7 port"), viser_server("203.0.113.7", 0):
        pass


def test_in_a_browser_a_click_on_a_camera_shows_its_pictures(viewer: Viewer, browser: Browser) -> None:
    port = viewer.server.get_port()
    control(viewer, "all cameras").value = True
    seen = len(browser.requests)
    browser.open(f"http://127.0.0.1:{port}")
    browser.wait_for("document.body?.innerText.includes('Click a camera')")
    (client,) = viewer.server.get_clients().values()
    pose = made.pose(5)  # from behind a camera, turned away from the wall: its frustum is in the middle of the page
    with client.atomic():
        client.camera.up_direction = -pose[:3, 1]
        client.camera.position = pose[:3, 3] - 0.6 * pose[:3, 2]
        client.camera.look_at = pose[:3, 3] + 0.05 * pose[:3, 2]
    deadline = time.monotonic() + 120
    width, height = browser.evaluate("[innerWidth, innerHeight]")
    while viewer.chosen is None and time.monotonic() < deadline:
        time.sleep(1.0)
        browser.click(width / 2, height / 2)
    assert viewer.chosen is not None
    browser.wait_for(f"document.body?.innerText.includes('keyframe {viewer.chosen + 1} of 12')")
    assert all(url.startswith(("http://127.0.0.1", "ws://127.0.0.1")) for url in browser.requests[seen:])
    assert len(browser.requests) > seen and not browser.errors
    browser.open("about:blank")


def test_a_large_cloud_is_drawn_in_part_while_it_is_turned(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    total = len(content.cloud)
    monkeypatch.setattr("come_ros.view.detail.FIRST_LEVEL", total // 8)
    for name in ("FIRST_POINTS", "TURN_POINTS"):
        monkeypatch.setattr(f"come_ros.view.detail.{name}", total // 2)
    monkeypatch.setattr("come_ros.view.detail.TURN_S", 1e9)  # however slowly the test runs
    monkeypatch.setattr("come_ros.view.detail.REST_S", 1e9)
    with viser_server("127.0.0.1", 0) as server:
        viewer = Viewer(server, content)
        settled(viewer)
        for _ in range(8):  # of which the first only says where the camera is
            assert drawn(viewer) == pytest.approx(total / 2, rel=0.02)
            viewer._turned(1)
        seen = np.concatenate([node.points for node in viewer.cloud_nodes if node.visible])
        np.testing.assert_allclose(seen.mean(axis=0), content.cloud.places.mean(axis=0), atol=0.2)  # spread evenly
        deadline = time.monotonic() + 60
        while drawn(viewer) < total and time.monotonic() < deadline:
            time.sleep(0.02)
        assert drawn(viewer) == total, "it rests"
        viewer.close()
