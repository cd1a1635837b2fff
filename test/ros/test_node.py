"""The live node over real DDS: what goes in, what comes out, what is said, and how it ends."""

from __future__ import annotations

import importlib.util
import signal
import time

import numpy as np
import pytest
from ros.live_node import (
    HEIGHT,
    PATIENCE_S,
    START_NS,
    STEP_NS,
    WIDTH,
    K,
    NodeProcess,
    Peer,
    node_with,
    picture,
    wait_until,
)
from sensor_msgs.msg import CompressedImage, Image

from come_ros.camera.preprocess import crop_intrinsics, plan_resize
from come_ros.ros import messages

# a queue that holds all images of a test: on a busy machine the node may get no core for longer than five images take
DEEP = ("-p", "input.depth:=60")
WITH_TF = ("-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2", *DEEP)
EVERY = (*WITH_TF, "-p", "tf.mode:=off")

SLOW = node_with("FakeBackbone({delay})")
LOADING = node_with("time.sleep(60)")
STUCK = node_with(
    "Stuck()",
    """
class Stuck(FakeBackbone):
    def predict(self, *arguments, **more):
        time.sleep(60)
""",
)


def settled(peer: Peer, received: int) -> dict[str, str]:
    """Input diagnostics once `received` frames are in and none is pending; every message on the way must balance."""

    def done() -> dict[str, str]:
        status = peer.status("come: input")
        return status if status and int(status["received"]) >= received and status["pending"] == "0" else {}

    status = wait_until(done, what=f"{received} frames to be settled: {peer.status('come: input')}")
    for array in peer.received["/diagnostics"]:
        for s in array.status:
            values = {v.key: v.value for v in s.values}
            if "received" in values:
                dropped = sum(int(v) for k, v in values.items() if k.startswith("dropped_"))
                assert int(values["received"]) == int(values["used"]) + int(values["pending"]) + dropped
    return status


def started(start_node, peer: Peer, *arguments: str, base=EVERY, **options) -> NodeProcess:
    if peer.received:  # what an earlier node said must not be taken for this one's
        for got in peer.received.values():
            got.clear()
    else:
        peer.listen_to_outputs()
    node = start_node(*base, *arguments, **options)
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    return node


def assert_ends_well(node: NodeProcess, with_signal: int) -> None:
    code, seconds = node.stop(with_signal)
    print(f"ended {seconds:.2f} s after {signal.Signals(with_signal).name}")
    assert code == (129 if with_signal == signal.SIGHUP else 0), node.log
    assert seconds < 3.0
    assert "Traceback" not in node.log


def stamps(received) -> list[int]:
    return [messages.stamp_ns(m.header.stamp) for m in received]


def test_each_used_frame_comes_out_once_with_its_stamp_and_depth_with_k_equals_cloud(start_node, peer: Peer) -> None:
    node = started(start_node, peer)
    sent = [START_NS + i * STEP_NS for i in range(12)]
    for i, stamp in enumerate(sent):
        peer.send(picture(i), stamp)
        time.sleep(0.06)
    status = settled(peer, len(sent))
    out = {topic: got for topic, got in peer.received.items() if topic.startswith("/come/")}
    used = int(status["used"])
    assert used > 0
    wait_until(lambda: all(len(got) >= used for got in out.values()), what=f"{used} messages on each topic")
    for topic, got in out.items():
        assert len(got) == used, topic
        assert stamps(got) == sorted(set(stamps(got))), topic
        assert set(stamps(got)) <= set(sent), f"{topic}: a stamp is not bit for bit the source's"
    assert status["received"] == "12" and status["camera_info"] == "ok" and status["size"] == f"{WIDTH}x{HEIGHT}"

    plan = plan_resize(WIDTH, HEIGHT, 224, 14)
    for points, depth, info in zip(
        out["/come/points"], out["/come/depth/image"], out["/come/depth/camera_info"], strict=True
    ):
        assert points.header == depth.header == info.header
        assert depth.header.frame_id == "cam_optical_frame"
        assert (depth.encoding, depth.width, depth.height, depth.step) == (
            "32FC1",
            plan.width,
            plan.height,
            4 * plan.width,
        )
        k = np.array(info.k).reshape(3, 3)
        np.testing.assert_allclose(k, crop_intrinsics(K, plan))
        np.testing.assert_array_equal(np.array(info.p).reshape(3, 4)[:, :3], k)
        assert (info.width, info.height, list(info.d)) == (plan.width, plan.height, [0.0] * 5)
        z = np.frombuffer(depth.data, "<f4").reshape(plan.height, plan.width)
        v, u = np.nonzero(np.isfinite(z))
        z = z[v, u].astype(np.float64)
        expected = np.stack([(u - k[0, 2]) * z / k[0, 0], (v - k[1, 2]) * z / k[1, 1], z], axis=1)
        cloud = messages.points_of(points)
        assert (points.point_step, points.height, points.is_dense) == (20, 1, True)
        assert len(cloud) == len(expected) > 1000
        np.testing.assert_allclose(np.stack([cloud[a] for a in "xyz"], axis=1), expected, rtol=1e-4, atol=1e-6)

    first, second = out["/come/odometry"][:2]
    assert (first.header.frame_id, first.child_frame_id) == ("visual_odom", "cam_optical_frame")
    variance = np.diag(np.array(second.pose.covariance).reshape(6, 6))
    assert list(variance[:3]) == [9999.0] * 3, "the scale is unknown, so the position is"
    assert np.all((variance[3:] >= 0.001) & (variance[3:] < 1.0))
    assert list(np.diag(np.array(first.twist.covariance).reshape(6, 6))) == [9999.0] * 6
    assert first.twist.twist.linear.x == 0.0
    # the first camera is level: it looks along the world's x, and its x axis is the world's -y
    np.testing.assert_allclose(
        messages.pose_of(first.pose.pose)[:3, :3], [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-9
    )
    assert_ends_well(node, signal.SIGINT)


def test_compressed_images_and_an_unmatched_camera_info(start_node, peer: Peer) -> None:
    import cv2

    started(start_node, peer, "-p", "image_transport:=compressed")
    wait_until(lambda: peer.compressed.get_subscription_count())
    for i in range(4):
        head = messages.header(START_NS + i * STEP_NS, "cam_optical_frame")
        data = cv2.imencode(".jpg", picture(i))[1]
        peer.camera_info.publish(messages.camera_info_message(K, 640, 480, head))
        peer.compressed.publish(CompressedImage(header=head, format="jpeg", data=messages.payload(data)))
        time.sleep(0.06)
    status = settled(peer, 4)
    assert int(status["used"]) > 0
    assert "640x480" in status["camera_info"] and "320x240" in status["camera_info"]
    assert status["level"] == "1" and "remap" in status["message"]
    assert peer.status("come: output")["intrinsics_source"] == "predicted"


def test_bad_frames_are_counted_told_and_survived(start_node, peer: Peer) -> None:
    node = started(start_node, peer)
    good = messages.image_message(picture(0), messages.header(START_NS, "cam_optical_frame"))
    bad = [
        Image(
            header=good.header,
            width=4,
            height=2,
            encoding="32FC1",
            step=16,
            data=messages.payload(np.zeros(8, np.float32)),
        ),
        Image(
            header=good.header,
            width=4,
            height=2,
            encoding="sepia",
            step=12,
            data=messages.payload(np.zeros(24, np.uint8)),
        ),
        Image(
            header=good.header,
            width=4,
            height=2,
            encoding="rgb8",
            step=12,
            data=messages.payload(np.zeros(20, np.uint8)),
        ),
        Image(
            header=good.header,
            width=4,
            height=2,
            encoding="rgb8",
            step=0,
            data=messages.payload(np.zeros(24, np.uint8)),
        ),
        Image(header=good.header, encoding="rgb8"),
    ]
    for message in bad:
        peer.camera_info.publish(messages.camera_info_message(K, WIDTH, HEIGHT, good.header))
        peer.image.publish(message)
        time.sleep(0.05)
    status = settled(peer, len(bad))
    assert status["dropped_decode"] == str(len(bad))
    assert status["level"] == "2" and "rgb8" in status["message"]
    for i in range(2):
        peer.send(picture(i), START_NS + i * STEP_NS)
        time.sleep(0.2)
    peer.send(picture(2), START_NS + STEP_NS)  # the stamp of the one before
    status = settled(peer, len(bad) + 3)
    assert (status["used"], status["dropped_time"]) == ("2", "1")
    assert node.log.count("frame dropped") == 1, "said once in 5 s"
    assert_ends_well(node, signal.SIGTERM)


def test_a_slow_model_gets_the_newest_frames_and_old_results_are_dropped(start_node, peer: Peer) -> None:
    node = started(start_node, peer, "-p", "window.size:=3", "-p", "window.overlap:=1", script=SLOW.format(delay=0.5))
    for i in range(40):
        peer.send(picture(i), START_NS + i * STEP_NS)
        time.sleep(0.03)
    status = settled(peer, 40)
    assert int(status["dropped_busy"]) > 20
    last = START_NS + 39 * STEP_NS
    wait_until(lambda: stamps(peer.received["/come/odometry"])[-1:] == [last], what="the newest frame to come out")
    assert len(peer.received["/come/odometry"]) == int(status["used"])
    assert_ends_well(node, signal.SIGINT)

    node = started(start_node, peer, "-p", "max_data_age:=0.1", script=SLOW.format(delay=0.5))
    for i in range(3):
        peer.send(picture(i), START_NS + i * STEP_NS)
    status = settled(peer, 3)
    assert (status["used"], status["dropped_old"]) == ("0", "3")
    assert "max_data_age" in peer.status("come: output")["message"]
    assert not peer.received["/come/odometry"]


@pytest.mark.skipif(importlib.util.find_spec("tf2_msgs") is not None, reason="tf2_msgs is installed here")
def test_without_tf2_msgs_all_but_tf_goes_on_after_one_warning(start_node, peer: Peer) -> None:
    node = started(start_node, peer, base=WITH_TF)
    peer.send(picture(0), START_NS)
    assert settled(peer, 1)["used"] == "1"
    wait_until(lambda: peer.received["/come/points"])
    assert node.log.count("tf2_msgs is not installed") == 1
    assert peer.status("come: output")["tf_mode"] == "off"


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("script", [SLOW.format(delay=30), STUCK], ids=["polls stop", "never polls"])
def test_a_signal_ends_a_running_pass(start_node, peer: Peer, with_signal: int, script: str) -> None:
    node = started(start_node, peer, script=script)
    peer.send(picture(0), START_NS)
    wait_until(lambda: peer.status("come: input").get("pending") == "1", what="a frame in the worker")
    time.sleep(0.3)
    assert_ends_well(node, with_signal)


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("autostart", ["true", "false"])
def test_a_signal_ends_the_loading_of_weights(start_node, peer: Peer, with_signal: int, autostart: str) -> None:
    peer.listen_to_outputs()
    node = start_node(*EVERY, "-p", f"autostart:={autostart}", script=LOADING)
    wait_until(lambda: peer.status("come: inference"), what="diagnostics while loading")
    if autostart == "false":
        change_state(peer, "configure", wait=False)
        time.sleep(0.5)
    else:
        assert peer.status("come: inference")["state"] == "loading", "the executor answers while weights load"
    assert_ends_well(node, with_signal)


SIGNAL_IN_A_CONVERSION = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born without
from come_ros.ros import executors as program, main
def spin(self):
    try:
        {first}
        while True:
            pass
    except KeyboardInterrupt:  # which C++ code of rclpy makes something else of
        raise RuntimeError("Unable to convert call argument '0' to Python object") from None
program.SingleThreadedExecutor.spin = spin
sys.exit(main.main())
"""


@pytest.mark.parametrize("signalled", [True, False])
def test_an_error_that_a_signal_made_is_none_and_every_other_is(start_node, signalled: bool) -> None:
    first = "os.kill(os.getpid(), signal.SIGINT)" if signalled else "raise KeyboardInterrupt"
    node = start_node("-p", "backbone:=fake", script=SIGNAL_IN_A_CONVERSION.format(first=first))
    assert node.process.wait(PATIENCE_S) == (0 if signalled else 1)
    node._reader.join(2.0)
    assert ("Traceback" in node.log) != signalled, node.log


SIGNAL_AT_THE_HANDOVER = """
import os, sys, rclpy
from come_ros.ros import main, spin
init = rclpy.init
def signalled(args):
    os.kill(os.getpid(), {number})  # no handler of rclpy is there yet
    init(args=args)
    print("initialised")
rclpy.init = signalled
sys.exit(main.main())
"""


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_rclpy_has_its_handlers_is_not_lost(start_node, with_signal: int) -> None:
    node = start_node("-p", "backbone:=fake", script=SIGNAL_AT_THE_HANDOVER.format(number=int(with_signal)))
    assert node.process.wait(PATIENCE_S) == (129 if with_signal == signal.SIGHUP else 0), node.log
    node._reader.join(2.0)
    assert "initialised" in node.log and "Traceback" not in node.log and "FATAL" not in node.log, node.log


def test_a_closed_terminal_sends_its_signal_twice_and_nohup_ignores_it(start_node, peer: Peer) -> None:
    ignored = "import signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom come_ros.ros import main\nsys.exit(main.main())"
    node = started(start_node, peer, "-p", "scale.fixed:=2.0", script=ignored)
    assert node.log.count("scale.fixed has no effect while scale.mode is auto") == 1
    node.process.send_signal(signal.SIGHUP)
    peer.send(picture(0), START_NS)
    settled(peer, 1)
    assert_ends_well(node, signal.SIGTERM)
    node = start_node("-p", "backbone:=fake")
    node.wait_for("active: waiting for")
    node.process.send_signal(signal.SIGHUP)
    assert_ends_well(node, signal.SIGHUP)


MANY_TO_WAKE = """
import os, sys
from rclpy.signals import SignalHandlerGuardCondition
from come_ros.ros import executors, main
woken = []
class Executor(executors.SingleThreadedExecutor):
    def spin(self):
        woken[:] = [SignalHandlerGuardCondition(context=self._context) for _ in range(1000)]  # behind the executor's own, which wakes it
        cpu = min(os.sched_getaffinity(0))
        for thread in map(int, os.listdir("/proc/self/task")):  # one core, and all others give way to this thread
            os.sched_setaffinity(thread, [cpu])
            if thread != os.getpid():
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        print("spinning")
        super().spin()
    def shutdown(self, timeout_sec=None):
        woken.clear()
        return super().shutdown(timeout_sec)
executors.SingleThreadedExecutor = Executor
sys.exit(main.main())
"""


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_the_way_out_waits_for_rclpys_signal_thread(start_node, peer: Peer, with_signal: int) -> None:
    """That thread walks a list of guard conditions, which the end of the executor frees: a crash on a busy machine, once in some
    thousand stops."""
    peer.listen_to_outputs()
    node = start_node("-p", "backbone:=fake", script=MANY_TO_WAKE)
    node.wait_for("spinning")
    node.wait_for("active: waiting for")
    code, _ = node.stop(with_signal)  # whose time says nothing: the thread that is waited for gives way to every other
    assert code == 0, node.log


def test_a_missing_checkpoint_fails_configure_in_one_line(start_node, peer: Peer, tmp_path) -> None:
    peer.listen_to_outputs()
    path = str(tmp_path / "none.safetensors")
    node = start_node("-p", f"weights:={path}", "-p", "device:=cpu", "-p", "diagnostics.period:=0.2")
    node.wait_for("cannot configure")
    assert len([line for line in node.lines if path in line]) == 1
    wait_until(lambda: peer.status("come: inference").get("level") == "2")
    assert_ends_well(node, signal.SIGINT)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("window.sise:=3", "did you mean 'window.size'"),
        ("window.size:=99", "2 .. 64"),
        ("window.overlap:=9", "window.size (8)"),
    ],
)
def test_a_wrong_parameter_stops_the_start(start_node, argument: str, told: str) -> None:
    node = start_node("-p", argument)
    assert node.process.wait(PATIENCE_S) == 1
    node.wait_for(told)
    assert "Traceback" not in node.log


def change_state(peer: Peer, label: str, wait: bool = True) -> bool:
    from lifecycle_msgs.srv import ChangeState

    client = peer.node.create_client(ChangeState, "/come/change_state")
    try:
        wait_until(client.service_is_ready)
        request = ChangeState.Request()
        request.transition.label = label
        future = client.call_async(request)
        if wait:
            wait_until(future.done, what=label)
            return future.result().success
        return True
    finally:
        if wait:
            peer.node.destroy_client(client)


def test_full_lifecycle_again_and_again(start_node, peer: Peer) -> None:
    peer.listen_to_outputs()
    node = start_node(*EVERY, "-p", "autostart:=false")
    for cycle in range(2):
        for label in ("configure", "activate", "deactivate", "cleanup"):
            assert change_state(peer, label), f"{label} in cycle {cycle}:\n{node.log}"
    assert change_state(peer, "configure") and change_state(peer, "activate")
    wait_until(peer.matched)
    peer.received["/diagnostics"].clear()
    for i in range(3):
        peer.send(picture(i), START_NS + i * STEP_NS)
        time.sleep(0.1)
    assert settled(peer, 3)["used"] == "3"
    wait_until(lambda: len(peer.received["/come/points"]) == 3)
    assert change_state(peer, "shutdown")
    assert_ends_well(node, signal.SIGINT)


def test_deactivation_counts_what_was_waiting(start_node, peer: Peer) -> None:
    node = started(start_node, peer, script=SLOW.format(delay=30))
    for i in range(3):
        peer.send(picture(i), START_NS + i * STEP_NS)
        time.sleep(0.1)
    wait_until(lambda: peer.status("come: input").get("pending") == "3")
    assert change_state(peer, "deactivate")
    status = settled(peer, 3)
    assert (status["dropped_paused"], status["used"]) == ("3", "0")
    assert_ends_well(node, signal.SIGINT)


def test_time_jumps_restart_the_world(start_node, peer: Peer) -> None:
    started(start_node, peer)
    for start in (START_NS, START_NS - 10**9, START_NS - 2 * 10**9):
        for i in range(5):  # the third image behind a jump confirms it
            peer.send(picture(i), start + i * STEP_NS)
            time.sleep(0.1)
    status = settled(peer, 15)
    assert int(status["used"]) + int(status["dropped_time"]) == 15 and int(status["used"]) >= 9
    assert peer.status("come: output")["resets"] == "2"


def test_dynamic_parameters_take_effect_and_wrong_ones_are_refused_with_a_reason(start_node, peer: Peer) -> None:
    from rcl_interfaces.srv import SetParametersAtomically
    from rclpy.parameter import Parameter

    started(start_node, peer)
    client = peer.node.create_client(SetParametersAtomically, "/come/set_parameters_atomically")
    wait_until(client.service_is_ready)

    def assign(**values) -> tuple[bool, str]:
        given = [Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()]
        future = client.call_async(SetParametersAtomically.Request(parameters=given))
        wait_until(future.done)
        return future.result().result.successful, future.result().result.reason

    assert assign(window__size=3) == (True, ""), "the overlap follows"
    assert assign(window__overlap=2) == (True, "")
    assert not assign(window__size=2)[0] and "window.overlap" in assign(window__size=2)[1]
    assert "read-only" in assign(backbone="vggt")[1]
    assert not assign(cloud__stride=99)[0]
    assert not assign(cloud__max_range="far")[0]
    assert assign(cloud__max_range=5)[0], "a whole number for a float"
    assert assign(window__size=3, window__overlap=2, cloud__organized=True, cloud__frame="odom") == (True, "")
    peer.send(picture(0), START_NS)
    points = wait_until(lambda: peer.received["/come/points"])[0]
    assert points.header.frame_id == "visual_odom" and points.height == 168 and not points.is_dense


def test_delivery_of_vga_images_at_15_hz(start_node, peer: Peer) -> None:
    """A shorter run of the promise (1000 images, >= 99 %), with the shipped profile on both sides."""
    started(start_node, peer, script=SLOW.format(delay=0.3))
    image = messages.image_message(picture(0, 640, 480), messages.header(START_NS, "cam_optical_frame"))
    peer.camera_info.publish(messages.camera_info_message(K, 640, 480, image.header))
    for i in range(60):
        image.header = messages.header(START_NS + i * STEP_NS, "cam_optical_frame")
        peer.image.publish(image)
        time.sleep(1 / 15)
    assert int(settled(peer, 59)["received"]) >= 59
