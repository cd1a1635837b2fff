"""While no images are used: what the node says of the images that there are elsewhere, and of a node of its own name."""

from __future__ import annotations

import time

import numpy as np
import pytest
from ros.live_node import START_NS, STEP_NS, Peer, picture, wait_until
from ros.test_node import EVERY, SLOW, K, started
from sensor_msgs.msg import CompressedImage, Image

from come_ros.ros import messages, surroundings


class Graph:
    """A node that sees these topics, and these nodes. topics: name -> types; all have a publisher."""

    def __init__(self, topics=None, nodes=()) -> None:
        self.topics, self.nodes = topics or {}, [("come", "/"), *nodes]

    def get_topic_names_and_types(self):
        return [(name, [kinds] if isinstance(kinds, str) else kinds) for name, kinds in self.topics.items()]

    def count_publishers(self, name):
        return int(name in self.topics and "silent" not in name)

    def get_fully_qualified_name(self):
        return "/come"

    def get_node_names_and_namespaces(self):
        return self.nodes


class Cam:
    def __init__(self, topic: str) -> None:
        self.topic = topic


RAW, PACKED = surroundings.IMAGE, surroundings.COMPRESSED


@pytest.mark.parametrize(
    ("wanted", "topics", "told"),
    [
        ("/cam/image", {"/cam/image/compressed": PACKED}, "set image_transport to compressed"),
        ("/cam/image", {"/cam/image": PACKED}, "remap `image/compressed`"),
        ("/cam/image/compressed", {"/cam/image": RAW}, "set image_transport to raw"),
        ("/image", {"/left/image": RAW, "/right/image": RAW}, "/left/image, /right/image: remap `image`"),
        ("/image", {"/left/image/compressed": PACKED}, "also set image_transport to compressed"),
        ("/image", {f"/c{i}/image": RAW for i in range(9)}, "and 3 more"),
        ("/image", {}, "start the camera"),
        (
            "/image",
            {"/come/rgb/image_rect": RAW, "/silent": RAW, "/scan": "sensor_msgs/msg/LaserScan"},
            "start the camera",
        ),
    ],
)
def test_where_images_are_is_told_with_the_parameter_to_set(wanted, topics, told):
    text = surroundings.where_images_are(Graph(topics), [Cam(wanted)])
    assert told in text and "/come/" not in text and "/silent" not in text


@pytest.mark.parametrize(("nodes", "count"), [((), 0), ([("come", "/")], 1), ([("come", "/r1"), ("come2", "/")], 0)])
def test_twins_share_the_full_name(nodes, count):
    assert surroundings.twins(Graph(nodes=nodes)) == count


def test_a_node_that_waits_says_which_images_there_are_and_that_it_has_a_twin(start_node, peer: Peer) -> None:
    from rclpy.node import Node

    peer.listen_to_outputs()
    node = start_node(*EVERY, "-r", "image:=/elsewhere/image")
    node.wait_for("active:")
    packed = peer.node.create_publisher(CompressedImage, "/elsewhere/image/compressed", 1)
    twin = Node("come", context=peer.node.context, enable_rosout=False, start_parameter_services=False)
    try:
        fix = "set image_transport to compressed"
        wait_until(lambda: fix in peer.status("come: input").get("message", ""), what="the parameter to set")
        assert peer.status("come: input")["level"] == "1"
        node.wait_for(fix, 15)
        assert node.log.count(fix) == 1
        wait_until(lambda: "__node:=" in peer.status("come: output").get("message", ""), what="the twin")
        assert node.log.count("another node is called /come too") == 1
        assert "the scale is unknown" in peer.status("come: output")["message"]
    finally:
        twin.destroy_node()
        peer.node.destroy_publisher(packed)
    wait_until(lambda: peer.status("come: output")["level"] == "0", what="no warning once the twin is gone")


def test_images_that_cannot_be_decoded_are_not_missed_nor_is_their_camera_info(start_node, peer: Peer) -> None:
    node = started(start_node, peer)
    begun, sent = time.monotonic(), 0
    while time.monotonic() < begun + 7:
        head = messages.header(START_NS + sent * STEP_NS, "cam_optical_frame")
        peer.camera_info.publish(messages.camera_info_message(K, 640, 480, head))
        peer.image.publish(
            Image(header=head, height=480, width=640, encoding="sepia", step=640, data=b"\0" * 640 * 480)
        )
        sent += 1
        time.sleep(0.2)
    status = peer.status("come: input")
    assert status["camera_info"] == "ok" and "camera_info" not in status["message"]
    assert "no image" not in status["message"] and "sepia" in status["message"]
    assert "but none was used; dropped" in status["message"] and "decode" in status["message"]
    peer.send(picture(0), START_NS + sent * STEP_NS)
    wait_until(lambda: peer.status("come: input")["used"] == "1")
    assert "no image" not in node.log


def test_a_busy_node_does_not_blame_the_camera(start_node, peer: Peer) -> None:
    """Images come all the time; by their stamps those that a slow model leaves out are a pause of 6 s."""
    node = started(start_node, peer, "-p", "max_data_age:=0.0", script=SLOW.format(delay=1.5))
    for i in range(60):
        peer.send(picture(i), START_NS + i * 10**9)
        time.sleep(0.05)
    node.wait_for("no image was used for", 15)
    (line,) = [line for line in node.lines if "no image was used for" in line][:1]
    assert "images came, but were dropped (" in line and "busy" in line and "too slow" in line
    assert "check the camera" not in line
    assert np.isfinite(float(peer.status("come: inference")["latency_ms_mean"]))
