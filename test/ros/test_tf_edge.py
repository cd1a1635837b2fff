"""Which TF edge is published, for the trees that robots have."""

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
    assert edge.decide("cam", 0.0) == "off"
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


def test_off_is_off():
    assert TfEdge("off", "visual_odom").decide("cam", 9.0) == "off"
