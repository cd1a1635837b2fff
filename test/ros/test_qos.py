"""QoS over DDS: what follows its publishers, what can be overridden, and what is said where nothing fits."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros.live_node import HEIGHT, START_NS, STEP_NS, WIDTH, K, Peer, picture, wait_until
from ros.test_node import EVERY, assert_ends_well
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from come_ros.ros import messages

RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
CAMERA = ("-r", "image:=/cam/image_raw")


def run(start_node, peer: Peer, *arguments: str):
    peer.listen_to_outputs()
    node = start_node(*EVERY, "-p", "input.depth:=5", *CAMERA, *arguments)  # the last value of a parameter counts
    node.wait_for("active:")
    return node


def asked_for(peer: Peer) -> str:
    return peer.status("come: input").get("qos", "")


@pytest.mark.parametrize(
    "offered", [RELIABLE, BEST_EFFORT, LATCHED], ids=["reliable", "best effort", "transient local"]
)
def test_by_default_every_publisher_is_heard(start_node, peer: Peer, offered) -> None:
    run(start_node, peer)
    images = peer.node.create_publisher(Image, "/cam/image_raw", offered)
    wait_until(images.get_subscription_count, what="discovery")
    wait_until(lambda: peer.status("come: input").get("publishers") == "1")
    images.publish(messages.image_message(picture(0), messages.header(START_NS, "cam")))
    wait_until(lambda: peer.status("come: input").get("received") == "1", what="the image")
    assert asked_for(peer) == "best_effort volatile 5"


def test_auto_is_reliable_while_all_publishers_are(start_node, peer: Peer) -> None:
    node = run(start_node, peer, "-p", "input.reliability:=auto")
    wait_until(lambda: asked_for(peer).startswith("best_effort"), what="nobody there: best effort")
    first = peer.node.create_publisher(Image, "/cam/image_raw", RELIABLE)
    wait_until(lambda: asked_for(peer) == "reliable volatile 5", what="reliable, as the publisher")
    wait_until(lambda: peer.status("come: input").get("publishers") == "1")
    first.publish(messages.image_message(picture(0), messages.header(START_NS, "cam")))
    wait_until(lambda: peer.status("come: input").get("received") == "1", what="the image")
    second = peer.node.create_publisher(Image, "/cam/image_raw", BEST_EFFORT)
    wait_until(lambda: asked_for(peer).startswith("best_effort"), what="best effort, as one of the two")
    wait_until(lambda: peer.status("come: input").get("publishers") == "2")
    second.publish(messages.image_message(picture(1), messages.header(START_NS + STEP_NS, "cam")))
    wait_until(lambda: int(peer.status("come: input").get("received")) >= 2, what="its image too")
    assert_ends_well(node, signal.SIGINT)


def test_what_does_not_fit_is_shown_with_both_profiles_until_it_does(start_node, peer: Peer) -> None:
    node = run(start_node, peer, "-p", "input.reliability:=reliable")
    images = peer.node.create_publisher(Image, "/cam/image_raw", BEST_EFFORT)
    status = wait_until(
        lambda: (s := peer.status("come: input")) and "peer offers" in s["message"] and s, what="the conflict"
    )
    assert (
        "the node requests reliable volatile 5" in status["message"]
        and "peer offers best_effort volatile" in status["message"]
    )
    assert "set input.reliability to best_effort" in status["message"] and status["level"] != "0"
    assert node.log.count("the QoS of /cam/image_raw is incompatible") == 1
    peer.node.destroy_publisher(images)
    wait_until(lambda: "is incompatible" not in peer.status("come: input")["message"], what="its end")
    assert_ends_well(node, signal.SIGINT)


def test_an_override_counts_for_its_own_topic_only(start_node, peer: Peer) -> None:
    run(
        start_node, peer,
        "-p", "qos_overrides./cam/camera_info.subscription.reliability:=reliable",
        "-p", "qos_overrides./cam/camera_info.subscription.depth:=9",
        "-p", "qos_overrides./come/points.publisher.reliability:=best_effort",
    )  # fmt: skip
    wait_until(lambda: asked_for(peer) == "best_effort volatile 5", what="the images' own QoS")
    (info,) = wait_until(lambda: peer.node.get_subscriptions_info_by_topic("/cam/camera_info"))
    assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    (points,) = wait_until(lambda: peer.node.get_publishers_info_by_topic("/come/points"))
    assert points.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_an_override_of_reliability_wins_over_auto(start_node, peer: Peer) -> None:
    run(
        start_node, peer, "-p", "input.reliability:=auto",
        "-p", "qos_overrides./cam/image_raw.subscription.reliability:=best_effort",
    )  # fmt: skip
    peer.node.create_publisher(Image, "/cam/image_raw", RELIABLE)
    wait_until(lambda: peer.status("come: input").get("publishers") == "1")
    assert asked_for(peer).startswith("best_effort")


def test_who_asks_our_topics_for_more_than_they_offer_is_named(start_node, peer: Peer) -> None:
    """An RViz display set to transient local on a topic that is not: it stays empty, and now one can see why."""
    node = run(start_node, peer)
    subscription = peer.node.create_subscription(PointCloud2, "/come/points", lambda _: None, LATCHED)
    status = wait_until(
        lambda: (s := peer.status("come: output")) and "peer asks" in s["message"] and s, what="the conflict"
    )
    assert (
        "peer asks for reliable transient_local" in status["message"]
        and "the node offers reliable volatile" in status["message"]
    )
    peer.node.destroy_subscription(subscription)
    wait_until(lambda: "it receives nothing" not in peer.status("come: output")["message"], what="its end")
    assert_ends_well(node, signal.SIGINT)


def test_zero_stamps_without_clock_take_the_system_time(start_node, peer: Peer) -> None:
    """use_sim_time, and nobody publishes /clock: time zero would make every frame as old as the last."""
    run(start_node, peer, "-p", "use_sim_time:=true")
    sensor = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
    images = peer.node.create_publisher(Image, "/cam/image_raw", sensor)
    infos = peer.node.create_publisher(CameraInfo, "/cam/camera_info", sensor)
    wait_until(lambda: peer.status("come: input").get("publishers") == "1" and infos.get_subscription_count())
    infos.publish(messages.camera_info_message(np.asarray(K), WIDTH, HEIGHT, messages.header(0, "cam")))
    for i in range(3):
        images.publish(messages.image_message(picture(i), messages.header(0, "cam")))
        wait_until(lambda n=i: int(peer.status("come: input").get("received", 0)) > n)
    wait_until(lambda: peer.status("come: input").get("used") == "3", what="all of them used")
