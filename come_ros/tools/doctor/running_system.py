"""Judges the facts that come_ros.ros.programs.probe reports about a running ROS system. Imports no ROS."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...config import Config

OK, WARN, FAIL = "OK", "WARN", "FAIL"

CLOCK_SKEW_S = 1.0  # between an image's stamp and its arrival


class Finding(NamedTuple):
    """One line of the report. level: OK, WARN or FAIL; fix: what to do, "" if nothing."""

    level: str
    subject: str
    text: str
    fix: str = ""


def judge(seen: Mapping[str, Any], config: Config, asked_for: str = "", sim_time: bool = False) -> Iterator[Finding]:
    """seen: see probe.look. asked_for: the topic that must be published, "" for any or none. sim_time: whether the node will use
    /clock."""
    yield from _topic(seen, config, asked_for)
    if seen["kind"]:
        yield from _images(seen)
        yield from _camera_info(seen)
    yield from _tf(seen, config)
    yield from _clock(seen, sim_time)
    yield from _nodes(seen)


def _topic(seen: Mapping[str, Any], config: Config, asked_for: str) -> Iterator[Finding]:
    there = ", ".join(sorted(seen["images"])) or "none"
    if not seen["topic"]:
        if seen["images"]:
            yield Finding(WARN, "camera", f"several image topics: {there}", "say which one: --topic NAME")
        else:
            text = "no images are published here (cameras of other domains and machines are not examined)"
            fix = "start the camera driver, then run this again; ROS_DOMAIN_ID must be the same"
            yield Finding(FAIL if asked_for else WARN, "camera", text, fix)
        return
    if not seen["kind"]:
        text = f"no node publishes images on {seen['topic']}; there are: {there}"
        fix = "start the camera driver" + (", or remap `image` to one of those" if seen["images"] else "")
        yield Finding(FAIL, "camera", text, fix)
        return
    compressed = seen["kind"].endswith("CompressedImage")
    if asked_for and compressed != (config.image_transport == "compressed"):
        wanted = "compressed" if compressed else "raw"
        fix = f"set image_transport to {wanted}, with `image` remapped to {seen['topic'].removesuffix('/compressed')}"
        yield Finding(
            FAIL, "camera", f"{seen['topic']} is {seen['kind']}, but image_transport is {config.image_transport}", fix
        )
    names = ", ".join(name for name, *_ in seen["publishers"])
    if len(seen["publishers"]) > 1:
        text = f"{len(seen['publishers'])} nodes publish on {seen['topic']}: {names}"
        yield Finding(
            WARN,
            "camera",
            text,
            "let only one camera publish the topic: images of different cameras cannot share a window",
        )
    for name, reliability, durability in seen["publishers"]:
        offered = f"{name} offers {reliability} {durability}"
        if config.input.reliability == "reliable" and reliability == "best_effort":
            text = f"the node requests reliable, {offered}: no image can arrive"
            yield Finding(FAIL, "QoS", text, "set input.reliability to best_effort or auto")
        elif seen["received"]:
            yield Finding(OK, "QoS", f"{offered}, the node requests {config.input.reliability}")


def _images(seen: Mapping[str, Any]) -> Iterator[Finding]:
    if not seen["received"]:
        text = f"{seen['topic']} has {len(seen['publishers'])} publishers, but no image came"
        fix = "start the driver with the same DDS profile (see `DDS profile`), or let it publish reliable; check that the camera runs"
        yield Finding(FAIL, "images", text, fix)
        return
    stamps = [stamp for stamp, _ in seen["stamps_ns"]]
    span = (seen["stamps_ns"][-1][1] - seen["stamps_ns"][0][1]) * 1e-9
    rate = f"{(len(stamps) - 1) / span:.1f} Hz" if span > 0 and len(stamps) > 1 else "one image"
    what = f"{seen['size']} {seen['encoding']} of {seen['frame_id'] or 'no frame'}, {rate}"
    if seen["unreadable"]:
        yield Finding(FAIL, "images", seen["unreadable"], "let the driver publish one of those encodings, whole")
    else:
        yield Finding(OK, "images", what)
    if not seen["frame_id"]:
        fix = "set frame_id in the driver; camera_optical_frame is used instead"
        yield Finding(WARN, "images", "their header names no frame", fix)
    if not any(stamps):
        yield Finding(WARN, "stamps", "are zero: the time of arrival is used", "let the driver set header.stamp")
        return
    if any(after <= before for before, after in itertools.pairwise(stamps)):
        text = "stand still or go back: such frames are dropped"
        yield Finding(WARN, "stamps", text, "check the driver; for a bag in a loop see on_time_jump")
    skew = min((arrival - stamp) * 1e-9 for stamp, arrival in seen["stamps_ns"])
    if abs(skew) > CLOCK_SKEW_S and not seen["clock"]["publishers"]:
        text = f"are {abs(skew):.1f} s {'behind' if skew > 0 else 'ahead of'} this machine's clock: TF at those times may not be found"
        yield Finding(
            WARN, "stamps", text, "synchronise the clocks (chrony), or play bags with --clock and use_sim_time"
        )
    else:
        yield Finding(OK, "stamps", f"{skew * 1e3:.0f} ms old at arrival, at least")


def _camera_info(seen: Mapping[str, Any]) -> Iterator[Finding]:
    info, topic = seen["camera_info"], seen["camera_info_topic"]
    if not info["received"]:
        fix = "remap `camera_info` to the calibrated camera's; without it the intrinsics are predicted"
        yield Finding(WARN, "camera_info", f"nothing comes on {topic}", fix)
    elif info["remark"]:
        yield Finding(
            WARN, "camera_info", info["remark"], "calibrate the camera at this size, or set it to the calibrated one"
        )
    elif seen["received"]:
        yield Finding(OK, "camera_info", f"{topic} fits the images")


def _tf(seen: Mapping[str, Any], config: Config) -> Iterator[Finding]:
    if seen["tf"] is None or config.tf.mode == "off":
        return  # whether tf2_msgs is installed is reported elsewhere
    for child, parents in seen["tf"].items():
        if len(parents) > 1:
            text = f"{child} has several parents: {', '.join(parents)}"
            yield Finding(FAIL, "TF", text, "let one node publish it: transforms jump between the two otherwise")
    ours = any(name.endswith("/come") for name in seen["nodes"])
    odom, camera = config.odom_frame, seen["frame_id"].lstrip("/")
    if odom in seen["tf"] and not ours:
        text = f"{odom} is published by others already, below {seen['tf'][odom][0]}"
        yield Finding(FAIL, "TF", text, "set odom_frame to a name that no other node uses")
    elif camera and camera in seen["tf"] and config.tf.mode == "forward" and not ours:
        text = f"tf.mode is forward, but {camera} has a parent already: {seen['tf'][camera][0]}"
        yield Finding(FAIL, "TF", text, "set tf.mode to auto or inverse")
    elif camera:
        edge = f"{camera} -> {odom}" if camera in seen["tf"] else f"{odom} -> {camera}"
        yield Finding(OK, "TF", f"{len(seen['tf'])} frames have a parent; the node adds {edge}")


def _clock(seen: Mapping[str, Any], sim_time: bool) -> Iterator[Finding]:
    publishers, ticks = seen["clock"]["publishers"], seen["clock"]["ticks"]
    if sim_time and not ticks:
        text = "use_sim_time is wanted, but nothing comes on /clock"
        yield Finding(FAIL, "clock", text, "play the bag with --clock, or leave use_sim_time false")
    elif publishers > 1:
        yield Finding(
            WARN, "clock", f"{publishers} nodes publish /clock: time jumps", "stop all but one simulator or player"
        )
    elif publishers and not sim_time:
        yield Finding(
            WARN, "clock", "/clock is published", "start the node with use_sim_time:=true, as all others here"
        )
    else:
        yield Finding(OK, "clock", "/clock" if publishers else "the system clock; no node publishes /clock")


def _nodes(seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Nodes that share a full name: parameters and services reach any of them."""
    count = Counter(seen["nodes"])
    for name in sorted(name for name, n in count.items() if n > 1 and not name.rpartition("/")[2].startswith("_")):
        fix = "end one of them, or give it another name: --ros-args -r __node:=NAME"
        yield Finding(
            WARN, "nodes", f"{count[name]} nodes are called {name}: parameters and services reach any of them", fix
        )
