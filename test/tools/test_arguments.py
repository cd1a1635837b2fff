"""Arguments that several commands share."""

import argparse
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
