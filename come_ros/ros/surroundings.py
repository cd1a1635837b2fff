"""What else there is on the ROS graph: images that are published elsewhere, and nodes of our own name."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.node import Node

from .camera import Camera

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
MOST_NAMED = 6


def image_topics(node: Node) -> dict[str, list[str]]:
    """Topic -> types, of images that other nodes publish."""
    own = f"{node.get_fully_qualified_name()}/"
    return {
        name: kinds
        for name, kinds in node.get_topic_names_and_types()
        if {IMAGE, COMPRESSED} & set(kinds) and not name.startswith(own) and node.count_publishers(name)
    }


def where_images_are(node: Node, cameras: Sequence[Camera]) -> str:
    """What to do where no images come: which ones are published, and the parameter or the remapping that makes us read them."""
    there = image_topics(node)
    for camera in cameras:
        raw, compressed = (
            camera.topic.removesuffix("/compressed"),
            f"{camera.topic.removesuffix('/compressed')}/compressed",
        )
        wants_raw = camera.topic == raw
        if wants_raw and (COMPRESSED in there.get(compressed, ()) or there.get(raw) == [COMPRESSED]):
            found = compressed if compressed in there else raw
            return (
                f"{found} is published ({COMPRESSED}): set image_transport to compressed{_remap(found != compressed)}"
            )
        if not wants_raw and IMAGE in there.get(raw, ()):
            return f"{raw} is published ({IMAGE}): set image_transport to raw"
    if not there:
        return "nobody publishes images that this node could find: start the camera; ROS_DOMAIN_ID must be the same on both sides"
    names = [name + (" (compressed)" if IMAGE not in kinds else "") for name, kinds in sorted(there.items())]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    transport = (
        "; for a compressed one also set image_transport to compressed" if any("(" in name for name in names) else ""
    )
    return f"images are published on {', '.join(names[:MOST_NAMED])}{more}: remap `image` to one of them{transport}"


def _remap(needed: bool) -> str:
    return ", and remap `image/compressed` to it" if needed else ""


def twins(node: Node) -> int:
    """How many other nodes have our full name. ROS does not forbid it: parameters, services and TF then reach any of them."""
    return max(
        0, sum(_full(*each) == node.get_fully_qualified_name() for each in node.get_node_names_and_namespaces()) - 1
    )


def twin_text(name: str) -> str:
    """What to do about it."""
    return (
        f"another node is called {name} too: parameters, services, transforms and outputs of both mix; end one of them, or give this "
        f"one another name with --ros-args -r __node:=NAME"
    )


def _full(name: str, namespace: str) -> str:
    return f"{namespace.rstrip('/')}/{name}"
