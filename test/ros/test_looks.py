"""What RViz and Foxglove ask for meets what a running node offers: names, types and QoS, as DDS tells them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from ros.live_node import Peer, wait_until
from ros.test_files import foxglove_topics

CONFIG = Path(__file__).resolve().parents[2] / "config"


def test_every_display_finds_its_topic_with_a_qos_that_fits(start_node, peer: Peer) -> None:
    # the node stands where the files take it to be: /come, next to a camera on /camera/image_raw
    node = start_node("-p", "backbone:=fake", "-r", "image:=/camera/image_raw")
    node.wait_for("active:")
    find = peer.node.get_publishers_info_by_topic
    displays = [
        d
        for d in yaml.safe_load((CONFIG / "come.rviz").read_text())["Visualization Manager"]["Displays"]
        if "Topic" in d
    ]
    kinds = {"PointCloud2", "Odometry", "Path", "Image"}
    for display in displays:
        kind, topic = display["Class"].rpartition("/")[2], display["Topic"]
        assert kind in kinds
        if topic["Value"] == "image":  # comes from a camera: RViz and the node ask for it alike
            continue
        (info,) = wait_until(lambda name=f"/{topic['Value']}": find(name), what=topic["Value"])
        offered = info.qos_profile
        assert info.topic_type.rpartition("/")[2] == kind
        assert topic["Reliability Policy"] == "Best Effort" or offered.reliability == ReliabilityPolicy.RELIABLE
        assert topic["Durability Policy"] == "Volatile" or offered.durability == DurabilityPolicy.TRANSIENT_LOCAL
    (asked,) = wait_until(lambda: peer.node.get_subscriptions_info_by_topic("/camera/image_raw"), what="the images")
    assert asked.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    layout = json.loads((CONFIG / "come.foxglove.json").read_text())
    for topic, shown in foxglove_topics(layout["configById"]).items():
        if topic.startswith("/camera/"):
            assert wait_until(lambda name=topic: peer.node.get_subscriptions_info_by_topic(name), what=topic)
        else:  # Foxglove's bridge takes the QoS from the publisher
            (info,) = wait_until(lambda name=topic: find(name), what=topic)
            assert info.topic_type.rpartition("/")[2] in shown
