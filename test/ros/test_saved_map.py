"""A saved map in the live node: a wrong one is refused at configure, a right one is found, and ~/reset begins in it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from ros.live_node import START_NS, STEP_NS, NodeProcess, Peer, wait_until
from ros.test_outputs import LATCHING, used
from ros.test_services import answer

from come_ros.ros.messages import message_type, points_of

NODE = (
    "-p",
    "backbone:=fake",
    "-p",
    "keyframe.mode:=every",
    "-p",
    "diagnostics.period:=0.2",
    "-p",
    "refine.mode:=none",
)


def run(start_node, peer: Peer, *arguments: str) -> NodeProcess:
    """An active node with TF, without which there is no frame for a map."""
    peer.listen("/diagnostics", message_type("diagnostic_msgs/msg/DiagnosticArray"))
    node = start_node(*NODE, *arguments)
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    return node


def room() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 255, (15, 20, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def look(peer: Peer, frames: range) -> None:
    """A camera that stands in front of the same wall."""
    for i in frames:
        peer.send(room(), START_NS + i * STEP_NS)
        used(peer, i + 1)


def test_a_map_is_saved_and_found_again(start_node, peer: Peer, tmp_path: Path) -> None:
    made = ("-p", "map.enabled:=true", "-p", f"map.save_dir:={tmp_path / 'maps'}")
    node = run(start_node, peer, *made, "-p", "loop.enabled:=true")
    look(peer, range(3))
    wait_until(lambda: peer.status("come: output").get("map_keyframes") == "1")
    assert peer.status("come: output")["map_located"] == "none"
    saved = answer(peer, "save_map")
    assert saved.success, saved.message
    folder = Path(saved.message)
    assert json.loads((folder / "map.json").read_text())["keyframes"] == 1
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    node.close()

    for got in peer.received.values():
        got.clear()
    cloud = peer.listen("/come/map_points", message_type("sensor_msgs/msg/PointCloud2"), LATCHING)
    node = run(start_node, peer, *made, "-p", f"map.load:={folder}", "-p", "map.mode:=localize")
    wait_until(lambda: cloud and len(points_of(cloud[-1])) > 1000, what="the saved points, before any image")
    assert cloud[-1].header.frame_id == "visual_map"
    peer.send(np.full((240, 320, 3), 90, np.uint8), START_NS - STEP_NS)  # a plain wall
    wait_until(lambda: "not found in the map" in peer.status("come: output").get("message", ""))
    status = peer.status("come: output")
    assert (
        status["map_located"].startswith("no: 1 keyframes") and status["level"] == "1" and status["map_loaded"] == "1"
    )
    assert answer(peer, "reset").success
    for world in (0, 1):
        for i in range(4 * world, 4 * world + 4):
            peer.send(room(), START_NS + i * STEP_NS)
        wait_until(lambda: peer.status("come: output").get("map_located", "").startswith("yes"), what="to be found")
        assert (
            "not found" not in peer.status("come: output")["message"]
            and peer.status("come: output")["map_scale"] == "1"
        )
        assert "found in the map" in node.log
        if world == 0:
            assert answer(peer, "reset").success
            wait_until(lambda: peer.status("come: output")["map_located"].startswith("no"), what="to search again")
    again = answer(peer, "save_map")
    assert again.success and not (Path(again.message) / "map.json").exists(), "the map is not changed"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_map_that_cannot_be_read_is_refused_with_its_line(start_node, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"format": "come_ros map", "version": 99, "come_ros": "7.0"}')
    peer.listen("/diagnostics", message_type("diagnostic_msgs/msg/DiagnosticArray"))
    node = start_node("-p", "backbone:=fake", "-p", "diagnostics.period:=0.2", "-p", f"map.load:={tmp_path}")
    node.wait_for("cannot configure: map.load:")
    wait_until(lambda: "version 99" in peer.status("come: inference").get("message", ""))
    status = peer.status("come: inference")
    assert status["state"] == "unconfigured" and status["level"] == "2" and "update come_ros" in status["message"]
    assert "Traceback" not in node.log
