"""~/reset and ~/save_map over DDS: what they do, what they answer, and that images keep coming in meanwhile."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
from ros.live_node import PATIENCE_S, START_NS, STEP_NS, Peer, node_with, picture, wait_until
from ros.test_outputs import LATCHING, run, send, stamps, used
from std_srvs.srv import Trigger

from come_ros.messages import stamp_ns
from come_ros.ros.messages import message_type, points_of, pose_of

FAULT = """
import os, sys, time
from come_ros import files
def fsync(fd):
    {fault}
files.os.fsync = fsync
from come_ros.ros.main import main
sys.exit(main())
"""
FULL_DISK = FAULT.format(fault="raise OSError(28, 'No space left on device')")
SLOW_DISK = FAULT.format(fault="while not os.path.exists({go_on!r}): time.sleep(0.02)")
SLOW_MODEL = node_with("FakeBackbone(600)")


def call(peer: Peer, name: str) -> Any:
    """Future of the answer of /come/NAME."""
    client = peer.node.create_client(Trigger, f"/come/{name}")
    wait_until(client.service_is_ready)
    future = client.call_async(Trigger.Request())
    peer._executor.wake()
    return future


def answer(peer: Peer, name: str, within_s: float = PATIENCE_S) -> Trigger.Response:
    future = call(peer, name)
    wait_until(future.done, within_s, f"the answer of {name}")
    return future.result()


def test_reset_begins_a_new_world_and_the_counters_go_on(start_node, peer: Peer) -> None:
    odometry = peer.listen("/come/odometry", message_type("nav_msgs/msg/Odometry"))
    path = peer.listen("/come/path", message_type("nav_msgs/msg/Path"), LATCHING)
    cloud = peer.listen("/come/map_points", message_type("sensor_msgs/msg/PointCloud2"), LATCHING)
    run(start_node, peer, "-p", "map.enabled:=true", "-p", "map.rate:=10.0")
    send(peer, range(6))
    before = used(peer, 6)
    wait_until(lambda: path and len(path[-1].poses) == before and cloud and len(points_of(cloud[-1])))
    origin = pose_of(odometry[0].pose.pose)
    assert np.linalg.norm(pose_of(odometry[-1].pose.pose)[:3, 3]) > 0.01

    done = answer(peer, "reset")
    assert (done.success, done.message) == (True, "a new map and odometry origin start at the next frame")
    wait_until(lambda: not path[-1].poses and not len(points_of(cloud[-1])), what="an empty path and map")
    assert not answer(peer, "save_map").success, "nothing is left to save"
    del odometry[:]
    sent = send(peer, range(6, 9))
    assert used(peer, 9) == before + len(odometry)
    assert peer.status("come: output")["resets"] == "1"
    np.testing.assert_allclose(pose_of(odometry[0].pose.pose), origin, atol=1e-9)
    assert np.diag(np.reshape(odometry[0].twist.covariance, (6, 6)))[0] == 9999.0, "there is nothing before it"
    wait_until(lambda: [*stamps(path[-1].poses)] == sent, what="a path of the new world only")


def test_reset_does_not_wait_for_a_running_pass(start_node, peer: Peer) -> None:
    run(start_node, peer, script=SLOW_MODEL)
    send(peer, range(3))
    wait_until(lambda: peer.status("come: input").get("pending") == "3")
    assert answer(peer, "reset").success
    assert used(peer, 3) == 0
    assert peer.status("come: input")["dropped_paused"] == "3"


def test_save_map_writes_all_that_was_published(start_node, peer: Peer, tmp_path: Path) -> None:
    odometry = peer.listen("/come/odometry", message_type("nav_msgs/msg/Odometry"))
    cloud = peer.listen("/come/map_points", message_type("sensor_msgs/msg/PointCloud2"), LATCHING)
    run(
        start_node,
        peer,
        "-p",
        "map.enabled:=true",
        "-p",
        f"map.save_dir:={tmp_path / 'maps'}",
        "-p",
        "path_max_size:=2",
    )
    send(peer, range(6))
    wait_until(lambda: used(peer, 6) == len(odometry))
    wait_until(lambda: cloud and stamp_ns(cloud[-1].header.stamp) == START_NS + 5 * STEP_NS, what="the whole map")
    saved = [answer(peer, "save_map") for _ in range(2)]
    assert all(s.success for s in saved)
    folders = [Path(s.message) for s in saved]
    assert sorted(folders) == sorted((tmp_path / "maps").iterdir()) and len(set(folders)) == 2
    for folder in folders:
        assert sorted(p.name for p in folder.iterdir()) == [
            "map.pcd",
            "map.ply",
            "trajectory.tum",
            "trajectory_map.tum",
        ]
        assert (folder / "map.pcd").read_bytes().endswith(bytes(cloud[-1].data))
        rows = [line.split() for line in (folder / "trajectory.tum").read_text().splitlines()]
        assert [int(row[0].replace(".", "")) for row in rows] == stamps(odometry)
        positions = [pose_of(m.pose.pose)[:3, 3] for m in odometry]
        np.testing.assert_allclose([[float(v) for v in row[1:4]] for row in rows], positions, atol=1e-8)


def test_save_map_says_what_stands_against_it_and_leaves_nothing(start_node, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    node = start_node("-p", "backbone:=fake", script=FULL_DISK)
    node.wait_for("active:")
    without = answer(peer, "save_map")
    assert not without.success and "set map.enabled to true" in without.message
    node.close()

    for place, told in ((tmp_path / "file" / "maps", "Not a directory"), (tmp_path / "full", "No space left")):
        for got in peer.received.values():
            got.clear()
        node = run(start_node, peer, "-p", "map.enabled:=true", "-p", f"map.save_dir:={place}", script=FULL_DISK)
        send(peer, range(2))
        assert used(peer, 2) == 2
        refused = answer(peer, "save_map")
        assert not refused.success and told in refused.message and str(place) in refused.message
        assert "choose a" in refused.message
        node.close()
    assert not list((tmp_path / "full").iterdir())


def test_images_come_in_and_go_out_while_a_slow_disk_is_written(start_node, peer: Peer, tmp_path: Path) -> None:
    odometry = peer.listen("/come/odometry", message_type("nav_msgs/msg/Odometry"))
    go_on, maps = tmp_path / "go_on", tmp_path / "maps"
    run(start_node, peer, "-p", "map.enabled:=true", "-p", f"map.save_dir:={maps}",
        script=SLOW_DISK.format(go_on=str(go_on)))  # fmt: skip
    send(peer, range(2))
    wait_until(lambda: used(peer, 2) == len(odometry))
    saving = call(peer, "save_map")
    wait_until(lambda: maps.is_dir() and any(maps.iterdir()), what="the first file")
    send(peer, range(2, 22))
    assert used(peer, 22) == 22, "received, reconstructed and published meanwhile"
    assert answer(peer, "reset").success
    assert not saving.done()
    go_on.touch()
    wait_until(saving.done)
    rows = (Path(saving.result().message) / "trajectory.tum").read_text().splitlines()
    assert len(rows) == 2, "as it was when asked"


def test_a_signal_while_saving_ends_the_node_in_time(start_node, peer: Peer, tmp_path: Path) -> None:
    node = start_node("-p", "backbone:=fake", "-p", "diagnostics.period:=0.2", "-p", "map.enabled:=true",
                      "-p", f"map.save_dir:={tmp_path}", script=SLOW_DISK.format(go_on=str(tmp_path / "never")))  # fmt: skip
    peer.listen("/diagnostics", message_type("diagnostic_msgs/msg/DiagnosticArray"))
    wait_until(peer.matched)
    peer.send(picture(0), START_NS)
    assert used(peer, 1) == 1
    saving = call(peer, "save_map")
    wait_until(lambda: any(tmp_path.iterdir()))
    code, seconds = node.stop(signal.SIGINT)
    assert code == 0 and seconds < 3.0 and "Traceback" not in node.log, node.log
    assert not saving.done()


def test_self_check_says_what_the_accelerator_gains_and_costs(start_node, peer: Peer) -> None:
    run(start_node, peer)
    early = answer(peer, "self_check")
    assert not early.success and "no window yet" in early.message
    send(peer, range(6))
    wait_until(lambda: peer.status("come: input").get("used") not in (None, "0"), what="a window")
    done = answer(peer, "self_check")
    assert done.success, done.message
    result = json.loads(done.message)
    # the stand-in has no accelerator: both passes are the same
    assert (
        result["kept_ratio"] == 1.0 and result["depth_abs_rel"] == result["trans_rel"] == 0.0 and result["speedup"] > 0
    )
