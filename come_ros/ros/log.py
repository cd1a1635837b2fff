"""Forwards the package's log messages to the node's log."""

from __future__ import annotations

import logging

from rclpy.lifecycle import LifecycleNode


class RosLogHandler(logging.Handler):
    """Sends records of the `come_ros` logger to ROS: console, file and /rosout."""

    def __init__(self, node: LifecycleNode) -> None:
        super().__init__()
        self._logger, self._context = node.get_logger(), node.context
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if not self._context.ok():  # after a signal, /rosout does not exist
            return
        text = self.format(record)
        # one line per level: rclpy binds a level to the location of the call
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)
