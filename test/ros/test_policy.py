"""The SROS 2 policy and the tables of topics and services in come_ros/ros/README.md name what the running node has: no more, no less."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from ros.live_node import Peer, node_with, wait_until

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "config" / "come_policy.xml"
TF = {"/tf", "/tf_static"}
LIFECYCLE = "/come/transition_event", "/come/change_state", "/come/get_", "/come/list_", "/come/describe_", "/come/set_"
EVERY_NODE = {"/parameter_events", "/rosout", "/clock"}
# a stand-in for a model that takes all that can be known next to images
SCRIPT = node_with(
    "Informed()",
    """
class Informed(FakeBackbone):
    inputs = frozenset({"intrinsics", "depth", "poses"})
""",
)
KNOWN = ("-p", "known.depth:=true", "-p", "known.odometry:=true", "-p", "use_sim_time:=true")


def granted() -> dict[str, set[str]]:
    """ "subscribe", "publish", "reply" -> names that the policy grants the node /come."""
    policy = ET.parse(POLICY).getroot()
    (profile,) = policy.iterfind("enclaves/enclave[@path='/come']/profiles/profile[@ns='/'][@node='come']")
    names: dict[str, set[str]] = {}
    for rule in profile:
        (((direction, qualifier),)) = rule.attrib.items()
        listed = [str(each.text) for each in rule]
        assert qualifier == "ALLOW" and direction not in names and len(set(listed)) == len(listed)
        names[direction] = set(listed)
    return names


def seen(peer: Peer, node: str) -> dict[str, dict[str, str]]:
    """The same of the running node, name -> type; "request" are the services that it calls."""
    graph = {
        "subscribe": peer.node.get_subscriber_names_and_types_by_node,
        "publish": peer.node.get_publisher_names_and_types_by_node,
        "reply": peer.node.get_service_names_and_types_by_node,
        "request": peer.node.get_client_names_and_types_by_node,
    }
    return {direction: {name: kinds[0] for name, kinds in ask(node, "/")} for direction, ask in graph.items()}


def page_rows() -> dict[str, str]:
    """Topic or service as the page's tables name it, -> the rest of its row. A cell may name several."""
    text = (ROOT / "come_ros" / "ros" / "README.md").read_text(encoding="utf-8")
    rows: dict[str, str] = {}
    for title in ("Topics", "Services"):
        section = re.search(rf"^## {title}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
        assert section, title
        table = section[1].strip().split("\n\n")[0]
        for row in table.splitlines()[2:]:
            _, cell, rest = row.split("|", 2)
            rows.update(dict.fromkeys(re.findall(r"`([^`]+)`", cell), rest))
    return rows


def test_policy_and_page_name_every_topic_and_service_of_the_node(start_node, peer: Peer) -> None:
    node = start_node("-p", "backbone:=fake", *KNOWN, script=SCRIPT)
    other = start_node("-p", "backbone:=fake", "-p", "image_transport:=compressed", "-r", "__node:=packed")
    node.wait_for("active:")
    other.wait_for("active:")
    wait_until(lambda: {"come", "packed"} <= set(peer.node.get_node_names()), what="discovery")
    allowed = granted()
    missing = set() if importlib.util.find_spec("tf2_msgs") else TF  # test_tf.py looks at them
    wanted = {
        "subscribe": allowed["subscribe"] - missing - {"/image/compressed"},
        "publish": allowed["publish"] - missing,
        "reply": allowed["reply"],
        "request": set(),
    }
    if importlib.util.find_spec("type_description_interfaces") is None:  # Humble
        wanted["reply"].discard("/come/get_type_description")

    def differences() -> dict[str, set[str]]:
        found = seen(peer, "come")
        return {d: diff for d, names in wanted.items() if (diff := names ^ set(found[d]))}

    try:
        wait_until(lambda: not differences(), 20.0)
    finally:
        assert not differences(), "in config/come_policy.xml or in the node, but not in both"
    wait_until(lambda: "/image/compressed" in seen(peer, "packed")["subscribe"], what="the compressed images")

    rows = page_rows()
    live: dict[str, str] = {}
    for kinds in seen(peer, "come").values():
        live.update(kinds)
    told = {name.replace("~/", "/come/").replace("...", "") for name in rows}
    said = {
        name if name.startswith("/") else f"/{name}" for name in told if "<" not in name
    }  # inputs have relative names
    for name, kind in live.items():
        if name in EVERY_NODE or name.startswith(LIFECYCLE):
            continue
        assert name in said, f"{name} is not on the page"
        row = next(rest for key, rest in rows.items() if name in (f"/{key}", key, key.replace("~/", "/come/")))
        assert re.sub("/(msg|srv)/", "/", kind) in row, (name, kind, row)
    gone = {n for n in said if n not in live and not n.startswith(LIFECYCLE)} - {"/image/compressed", *missing}
    assert not gone, f"on the page, but not of the node: {gone}"
