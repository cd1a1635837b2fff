"""Which TF edge is published, for the trees that robots have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from come_ros.ros.tf_edge import LISTEN_S, TfEdge


def test_a_bare_camera_gets_a_parent_after_listening():
    edge = TfEdge("auto", "visual_odom")
    assert edge.decide("cam", 0.5 * LISTEN_S) == ""
    assert edge.decide("cam", LISTEN_S) == "forward" == edge.decide("cam", 99.0)


def test_a_camera_in_a_robot_gets_our_world_as_its_leaf():
    edge = TfEdge("auto", "visual_odom")
    edge.observe([("base_link", "camera_link"), ("camera_link", "/cam")])
    assert edge.decide("cam", LISTEN_S) == "inverse" and not edge.conflict


def test_no_frame_ever_gets_a_second_parent():
    edge = TfEdge("forward", "visual_odom")
    edge.observe([("base_link", "cam")])
    assert edge.decide("cam", LISTEN_S) == "off"
    assert "cam is held by base_link" in edge.conflict and "set tf.mode to auto or inverse" in edge.conflict
    other = TfEdge("auto", "odom")
    other.observe([("map", "odom"), ("odom", "base"), ("base", "cam")])
    assert other.decide("cam", LISTEN_S) == "off" and "odom_frame" in other.conflict


def test_somebody_else_joining_later_silences_us_but_our_own_echo_does_not():
    edge = TfEdge("auto", "visual_odom")
    assert edge.decide("cam", LISTEN_S) == "forward"
    edge.observe([("visual_odom", "cam")])
    assert edge.decide("cam", 2.0) == "forward"
    edge.observe([("base_link", "cam")])
    assert edge.decide("cam", 3.0) == "off" and edge.conflict


@pytest.mark.parametrize("mode", ["auto", "forward", "inverse"])
def test_it_looks_before_it_publishes(mode):
    edge = TfEdge(mode, "visual_odom")
    assert edge.decide("cam", 0.0) == edge.decide("cam", 0.99 * LISTEN_S) == "" and not edge.conflict
    assert edge.decide("cam", LISTEN_S) in ("forward", "inverse")


def test_our_world_gets_no_second_parent_when_the_camera_is_called_otherwise():
    edge = TfEdge("inverse", "visual_odom")
    assert edge.decide("left", LISTEN_S) == edge.decide("left", 9.0) == "inverse"
    assert edge.decide("right", 9.0) == "off" and "visual_odom is held by left" in edge.conflict


edges = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=8)


@given(edges, edges, st.sampled_from(["auto", "forward", "inverse"]), st.sampled_from("abc"), st.sampled_from("aw"))
def test_whatever_others_publish_the_edge_is_never_a_second_parent_nor_part_of_a_loop(
    before, after, mode, moving, odom
):
    edge = TfEdge(mode, odom)
    seen: set[tuple[str, str]] = set()
    for told in (before, after):
        edge.observe(told)
        seen |= set(told)
        direction = edge.decide(moving, LISTEN_S)
        assert direction in ("forward", "inverse", "off") and bool(edge.conflict) == (direction == "off")
        if direction != "off":
            parent, child = (odom, moving) if direction == "forward" else (moving, odom)
            others = seen - {(parent, child)} if told is after else seen  # ours comes back to us
            assert all(c != child for _, c in others), "a second parent"
            above = {parent}
            for _ in range(len(seen)):
                above |= {p for p, c in seen if c in above}
            assert child not in above, "a loop"


def test_off_is_off():
    assert TfEdge("off", "visual_odom").decide("cam", 9.0) == "off"
