"""Faults that no other file arranges: what the node says of them, and what it does."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from ros.live_node import START_NS, STEP_NS, Peer, picture, wait_until
from ros.test_node import assert_ends_well, settled, started

from come_ros.ros.messages import pose_of

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from come_ros.ros.main import main
sys.exit(main())
"""


def test_without_torch_configure_fails_in_one_line_with_the_command(start_node, peer: Peer) -> None:
    peer.listen_to_outputs()
    node = start_node("-p", "diagnostics.period:=0.2", script=WITHOUT_TORCH)
    node.wait_for("cannot configure")
    (line,) = [line for line in node.lines if "cannot configure" in line]
    assert "torch" in line and "pip install torch" in line and "Traceback" not in node.log
    wait_until(lambda: "pip install torch" in peer.status("come: inference").get("message", ""))
    assert peer.status("come: inference")["level"] == "2"
    assert_ends_well(node, signal.SIGINT)


def test_a_device_that_is_not_available_is_a_failure(start_node, peer: Peer) -> None:
    pytest.importorskip("torch")
    node = start_node("-p", "device:=cuda:63")
    node.wait_for("cannot configure")
    (line,) = [line for line in node.lines if "cannot configure" in line]
    assert "cuda:63" in line and "auto" in line and "Traceback" not in node.log


def test_without_camera_info_it_goes_on_with_predicted_intrinsics_and_a_warning(start_node, peer: Peer) -> None:
    node = started(start_node, peer)
    for i in range(3):
        peer.send(picture(i), START_NS + i * STEP_NS, k=None)
    status = settled(peer, 3)
    assert (status["used"], status["level"]) == ("3", "1") and "remap `camera_info`" in status["message"]
    assert peer.status("come: output")["intrinsics_source"] == "predicted"
    wait_until(lambda: len(peer.received["/come/depth/camera_info"]) == 3)
    assert all(m.k[0] > 0 for m in peer.received["/come/depth/camera_info"])
    assert node.log.count("no camera_info received") == 1


def test_a_camera_that_stops_is_missed_and_goes_on_where_it_was(start_node, peer: Peer) -> None:
    node = started(start_node, peer, "-p", "scale.mode:=fixed")
    for i in range(4):
        peer.send(picture(i), START_NS + i * STEP_NS)
    used = int(settled(peer, 4)["used"])

    def level(expected: str) -> bool:
        status = peer.status("come: input")
        return status["level"] == expected and "no image for" in status["message"]

    wait_until(lambda: level("1"), what="a warning after 2 s")
    wait_until(lambda: level("2"), what="an error after 5 s")
    later = START_NS + 8 * 10**9
    for i in range(4):
        peer.send(picture(4 + i), later + i * STEP_NS)
    assert int(settled(peer, 8)["used"]) == used + 4
    wait_until(lambda: peer.status("come: input")["level"] == "0", what="its end")
    wait_until(lambda: len(peer.received["/come/odometry"]) == used + 4)
    assert peer.status("come: output")["resets"] == "0"
    before, after = peer.received["/come/odometry"][used - 1 : used + 1]
    np.testing.assert_allclose(pose_of(after.pose.pose), pose_of(before.pose.pose), atol=1e-9)
    assert np.diag(np.reshape(after.pose.covariance, (6, 6))).min() == 9999.0, "where it really is, nobody knows"
    assert "no image for" in node.log
    assert_ends_well(node, signal.SIGINT)
