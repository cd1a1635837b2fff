"""Arguments that several commands share."""

import argparse
import importlib
import logging

import pytest

from come_ros.tools.arguments import configuration


def options(*words: str) -> argparse.Namespace:
    return argparse.Namespace(params=None, weights=None, set=list(words))


def test_a_parameter_that_only_the_node_reads_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="come_ros"):
        configuration(options("base_frame=base_link", "window.size=6"))
    assert "only the live node reads base_frame: no effect here" in caplog.text and "window.size" not in caplog.text
    caplog.clear()
    configuration(options("window.size=6"))
    assert not caplog.text


def test_known_odometry_is_reported_where_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    given = options("known.odometry=true")
    assert not configuration(given).known.odometry
    assert "known.odometry is for the node" in caplog.text and "known.depth" not in caplog.text
    caplog.clear()
    given.odometry = "/odom"  # of `come_ros bag`
    assert configuration(given).known.odometry and not caplog.text


@pytest.mark.parametrize("name", ["bag", "demo", "eval", "calibrate", "distill", "train", "train_pace"])
def test_where_results_go_has_one_name_and_the_older_one_is_understood(name: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"come_ros.tools.{name}").add_arguments(parser)
    (action,) = (a for a in parser._actions if "-o" in a.option_strings)
    assert action.option_strings == ["-o", "--output"]
    source = ["recording"] if name == "bag" else []
    for word in ("-o", "--output", "--out"):
        assert str(getattr(parser.parse_args([*source, word, "somewhere"]), action.dest)) == "somewhere"
