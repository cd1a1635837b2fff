"""The node's states over DDS: what each transition leaves behind, what is said when one fails, and how a lost device ends the node."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ros.live_node import PATIENCE_S, START_NS, STEP_NS, NodeProcess, Peer, node_with, picture, wait_until
from ros.test_node import EVERY, assert_ends_well, change_state, settled, started
from ros.test_services import answer
from std_srvs.srv import SetBool

# else it keeps, now and then, ten MiB that were freed, and a leak could hide below that
MALLOC_GIVES_BACK = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}


def held(node: NodeProcess) -> tuple[int, int, float]:
    """Threads, file descriptors and resident memory (MiB) of the node's process."""
    process = Path(f"/proc/{node.process.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return int(status["Threads"]), len(os.listdir(process / "fd")), int(status["VmRSS"].split()[0]) / 1024


def entities(peer: Peer) -> tuple[int, ...]:
    """How many topics the node subscribes to, publishes and serves."""
    return tuple(
        len(found("come", "/"))
        for found in (
            peer.node.get_subscriber_names_and_types_by_node,
            peer.node.get_publisher_names_and_types_by_node,
            peer.node.get_service_names_and_types_by_node,
        )
    )


def entities_when_steady(peer: Peer, for_s: float = 1.0) -> tuple[int, ...]:
    """`entities` once they have not changed for a while: DDS reports what is gone piece by piece."""
    last, since = entities(peer), time.monotonic()
    while time.monotonic() - since < for_s:
        time.sleep(0.02)
        if (now := entities(peer)) != last:
            last, since = now, time.monotonic()
    return last


def sent_one_by_one(peer: Peer, count: int) -> dict[str, str]:
    """Input diagnostics after `count` frames, each sent when the one before it has ended somewhere."""
    status: dict[str, str] = {}
    for i in range(count):
        peer.send(picture(i), START_NS + i * STEP_NS)
        status = settled(peer, i + 1)
    return status


def test_twenty_cycles_leave_nothing_behind(start_node, peer: Peer) -> None:
    peer.listen_to_outputs()
    node = start_node(*EVERY, "-p", "autostart:=false", "-p", "map.enabled:=true", env=MALLOC_GIVES_BACK)
    seen: list[tuple[int, int, float]] = []
    empty: tuple[int, ...] = ()
    for cycle in range(20):
        for label in ("configure", "activate"):
            assert change_state(peer, label), f"{label} in cycle {cycle}:\n{node.log}"
        if cycle % 5 == 0:  # with something in it
            wait_until(peer.matched)
            peer.received["/diagnostics"].clear()  # those of an earlier cycle say 2, too
            for i in range(2):
                peer.send(picture(i), START_NS + i * STEP_NS)
            settled(peer, 2)
        for label in ("deactivate", "cleanup"):
            assert change_state(peer, label), f"{label} in cycle {cycle}:\n{node.log}"
        if cycle == 6:  # what is made once is made by now
            wait_until(lambda: not peer.node.count_subscribers("/image"), what="no subscription")
            empty = entities_when_steady(peer)
        if cycle >= 6:
            seen.append(held(node))
    threads, files, memory = zip(*seen, strict=True)
    assert max(threads) <= threads[0] and max(files) <= files[0] + 2, seen
    assert memory[-1] < memory[0] + 3, f"resident memory, MiB: {memory}"
    # no more than then: what the peer heard at that time may still have held some that were about to go
    wait_until(
        lambda: all(now <= before for now, before in zip(entities(peer), empty, strict=True)),
        what=f"as many topics as before ({empty}): {entities(peer)}",
    )
    assert_ends_well(node, signal.SIGINT)


def test_counts_start_at_zero_with_configure_and_go_on_through_deactivation(start_node, peer: Peer) -> None:
    started(start_node, peer)
    for i in range(3):
        peer.send(picture(i), START_NS + i * STEP_NS)
    settled(peer, 3)
    assert change_state(peer, "deactivate") and change_state(peer, "activate")
    wait_until(peer.matched)
    peer.send(picture(3), START_NS + 3 * STEP_NS)
    settled(peer, 4)
    assert change_state(peer, "deactivate") and change_state(peer, "cleanup") and change_state(peer, "configure")
    peer.received["/diagnostics"].clear()
    wait_until(lambda: peer.status("come: input").get("received") == "0")
    assert peer.status("come: inference")["state"] == "inactive"


def test_a_failed_configure_can_be_fixed_and_tried_again(start_node, peer: Peer, tmp_path: Path) -> None:
    """FAILURE, one line, and the node is as it was."""
    flag = tmp_path / "broken"
    flag.touch()
    script = node_with(
        "made()",
        f"""
def made():
    if os.path.exists({str(flag)!r}):
        raise errors.CheckpointError("weights file x does not exist: check weights:=")
    return FakeBackbone()
""",
    )
    peer.listen_to_outputs()
    node = start_node(*EVERY, "-p", "autostart:=false", script=script)
    assert not change_state(peer, "configure")
    node.wait_for("weights file x")
    assert len([line for line in node.lines if "weights file x" in line]) == 1 and "Traceback" not in node.log
    wait_until(lambda: "weights file x" in peer.status("come: inference").get("message", ""))
    assert peer.status("come: inference")["level"] == "2"
    flag.unlink()
    assert change_state(peer, "configure") and change_state(peer, "activate"), node.log
    wait_until(peer.matched)
    peer.send(picture(0), START_NS)
    settled(peer, 1)
    assert peer.status("come: inference")["level"] == "0"


def test_paused_frames_are_counted_and_the_model_stays(start_node, peer: Peer) -> None:
    node = started(start_node, peer)
    client = peer.node.create_client(SetBool, "/come/pause")
    wait_until(client.service_is_ready)

    def pause(wish: bool) -> str:
        future = client.call_async(SetBool.Request(data=wish))
        peer._executor.wake()
        wait_until(future.done)
        assert future.result().success
        return future.result().message

    peer.send(picture(0), START_NS)
    used = int(settled(peer, 1)["used"])
    assert pause(True) == "paused"
    for i in range(1, 4):
        peer.send(picture(i), START_NS + i * STEP_NS)
    status = settled(peer, 4)
    assert (status["used"], status["dropped_paused"]) == (str(used), "3")
    wait_until(lambda: peer.status("come: inference")["state"] == "paused")
    assert pause(False) == "running"
    peer.send(picture(4), START_NS + 4 * STEP_NS)
    status = settled(peer, 5)
    assert (int(status["used"]), status["dropped_paused"]) == (used + 1, "3")
    assert answer(peer, "reset").success
    assert node.log.count("configured:") == 1
    assert_ends_well(node, signal.SIGINT)


def test_a_lost_device_ends_the_process_with_code_70(start_node, peer: Peer) -> None:
    script = node_with(
        "FakeBackbone(fail_on=fail_on)",
        """
def fail_on(images):
    raise errors.DeviceLost("CUDA error: an illegal memory access was encountered")
""",
    )
    node = started(start_node, peer, script=script)
    peer.send(picture(0), START_NS)
    assert node.process.wait(PATIENCE_S) == 70, node.log
    node._reader.join(2.0)
    assert node.log.count("the GPU no longer responds") == 1 and "Traceback" not in node.log
    wait_until(
        lambda: "device is lost" in peer.status("come: inference").get("message", ""), what="the last diagnostics"
    )
    assert peer.status("come: inference")["level"] == "2"
    status = peer.status("come: input")
    assert (status["received"], status["dropped_rejected"], status["pending"]) == ("1", "1", "0")


def test_short_memory_makes_windows_smaller_and_is_said(start_node, peer: Peer) -> None:
    script = node_with("FakeBackbone(needs=lambda load: load.frames, free_mib=5)")
    node = started(start_node, peer, script=script)
    status = sent_one_by_one(peer, 14)
    assert int(status["used"]) == 14 - int(status["dropped_rejected"]) and int(status["used"]) >= 12
    inference = peer.status("come: inference")
    assert inference["level"] == "1" and "lower window.size" in inference["message"]
    assert (inference["window"], inference["oom_count"], inference["vram_free_mb"]) == ("4", "1", "5")
    assert inference["ladder_step"].startswith("1 of ")
    assert_ends_well(node, signal.SIGINT)


def test_when_nothing_fits_the_node_stays_up_and_says_so(start_node, peer: Peer) -> None:
    script = node_with("FakeBackbone(needs=lambda load: load.frames, free_mib=0.5)")
    node = started(start_node, peer, script=script)
    status = sent_one_by_one(peer, 6)
    assert (status["used"], status["dropped_rejected"]) == ("0", "6")
    inference = peer.status("come: inference")
    assert inference["level"] == "2" and "out of memory with the smallest possible window" in inference["message"]
    assert "Traceback" not in node.log
    assert_ends_well(node, signal.SIGINT)


def test_the_governor_steers_the_live_node(start_node, peer: Peer) -> None:
    script = node_with(
        # what merging saves is clear of what other processes cost
        "FakeBackbone(cost=lambda load: 0.09 * load.frames * (1 - 0.7 * load.ratio))",
        "from come_ros import governor\ngovernor.HOLD_S = 0.5",
    )
    node = started(
        start_node, peer, "-p", "latency_target_ms:=270.0", "-p", "accelerator.name:=come", script=script
    )  # fmt: skip
    sent = iter(range(1000))

    def smaller() -> bool:
        i = next(sent)
        peer.send(picture(i), START_NS + i * STEP_NS)
        return int(peer.status("come: inference").get("window", 99)) < 8

    wait_until(smaller, what="a smaller window")
    inference = peer.status("come: inference")
    assert float(inference["merge_ratio"]) == 0.8, "merging comes first"
    assert inference["latency_target_ms"] == "270" and not inference["governor_level"].startswith("0 ")
    assert "latency target 270 ms: accelerator.ratio" in node.log
    assert_ends_well(node, signal.SIGINT)


def test_a_transition_that_is_impossible_now_is_refused_and_the_node_lives(start_node, peer: Peer) -> None:
    """rclpy raises in the service, and the process ended."""
    from lifecycle_msgs.srv import ChangeState

    node = started(start_node, peer)
    client = peer.node.create_client(ChangeState, "/come/change_state")
    wait_until(client.service_is_ready)

    def change(number: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = number
        future = client.call_async(request)
        wait_until(future.done)
        return future.result().success

    configure, activate, deactivate = 1, 3, 4
    assert not change(configure) and not change(activate) and not change(99), "it is active already"
    assert "transition 1 is not possible in state active" in node.log and "set autostart to false" in node.log
    assert change(deactivate) and not change(deactivate) and change(activate)
    peer.send(picture(0), START_NS)
    wait_until(lambda: peer.status("come: input").get("used") == "1")
    assert_ends_well(node, signal.SIGINT)


def test_a_manager_and_autostart_do_not_fight(start_node, peer: Peer) -> None:
    """The manager is first: its requests wait while the model loads, and autostart then finds all done."""
    from lifecycle_msgs.srv import ChangeState

    script = node_with("(time.sleep(1.0), FakeBackbone())[1]")
    peer.listen_to_outputs()
    node = start_node("-p", "diagnostics.period:=0.2", script=script)
    client = peer.node.create_client(ChangeState, "/come/change_state")
    wait_until(client.service_is_ready)

    def asked(numbers: list[int]) -> list[int]:
        """Sends all at once; those without an answer in 10 s."""
        futures = {}
        for number in numbers:
            request = ChangeState.Request()
            request.transition.id = number
            futures[number] = client.call_async(request)
        end = time.monotonic() + 10
        wait_until(lambda: all(f.done() for f in futures.values()) or time.monotonic() > end)
        return [number for number, future in futures.items() if not future.done()]

    left = [1, 3]
    for _ in range(5):  # a server drops its answer to a client that it has not discovered yet, so a manager asks again
        left = asked(left) if left else []
    assert not left, f"no answer to the transitions {left}"
    wait_until(lambda: peer.status("come: inference").get("state") == "active")
    assert "Traceback" not in node.log
    assert_ends_well(node, signal.SIGINT)
