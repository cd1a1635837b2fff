"""Transports of image_transport: which topic is a copy of which, and whether its messages can be read here."""

from __future__ import annotations

from typing import NamedTuple

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


class Transport(NamedTuple):
    """suffix: last name of its topics. types: of its messages. why_not: why they cannot be read, "" if they can."""

    suffix: str
    types: tuple[str, ...]
    why_not: str = ""


_VIDEO = "it is a video stream, whose images depend on earlier ones"
TRANSPORTS = (
    Transport("raw", (IMAGE,)),
    Transport("compressed", (COMPRESSED,)),
    Transport("compressedDepth", (COMPRESSED,)),
    Transport("zstd", (COMPRESSED,), "its pixels are packed by zstd without a public layout"),
    Transport("theora", ("theora_image_transport/msg/Packet",), _VIDEO),
    Transport("ffmpeg", ("ffmpeg_image_transport_msgs/msg/FFMPEGPacket", COMPRESSED), _VIDEO),
    Transport("foxglove", ("foxglove_msgs/msg/CompressedVideo",), _VIDEO),
    Transport("imagezero", (COMPRESSED,), "ImageZero is not decoded here"),
)
_BY_SUFFIX = {transport.suffix: transport for transport in TRANSPORTS if transport.suffix != "raw"}
TYPES = frozenset(kind for transport in TRANSPORTS for kind in transport.types)
READ_TYPES = frozenset((IMAGE, COMPRESSED))


def base_topic(topic: str) -> str:
    """The topic of the raw images: "/camera/image_raw" of "/camera/image_raw/compressed", and of itself."""
    before, _, last = topic.rpartition("/")
    return before if last in _BY_SUFFIX and before else topic


def transport_of(topic: str, kind: str) -> Transport | None:
    """The transport of a topic with messages of that type; None if it carries no images."""
    found = _BY_SUFFIX.get(topic.rpartition("/")[2])
    if found is not None and kind in found.types:
        return found
    return next((transport for transport in TRANSPORTS if kind in transport.types and transport.suffix != "zstd"), None)


def namespace(topic: str) -> str:
    """The namespace of the camera_info that belongs to a topic."""
    return base_topic(topic).rpartition("/")[0]
