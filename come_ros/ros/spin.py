"""Creates the node, spins it, and takes it down when a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import rclpy.task
from rclpy.executors import ExternalShutdownException
from rclpy.signals import uninstall_signal_handlers

from ..errors import ConfigError
from ..interrupts import leave_terminal
from . import executors
from .arguments import explained, params_files
from .node import ReconstructionNode
from .worker import Load, load_pipeline


class _HangUp:
    """Turns SIGHUP, of which rclpy knows nothing, into SIGTERM. It waits for Python to run: for the next message or timer."""

    def __init__(self) -> None:
        self.seen = False
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, self._pass_on)

    def _pass_on(self, number: int, frame: Any) -> None:
        if not self.seen:  # a closed terminal sends it twice
            self.seen = True
            leave_terminal()
            os.kill(os.getpid(), signal.SIGTERM)


def spin(arguments: list[str], load: Load | None, take_signals: Callable[[], None]) -> tuple[int, bool]:
    """Runs the node until SIGINT, SIGTERM or SIGHUP. take_signals: is called as soon as rclpy's handlers of signals are installed.
    Returns the exit code, and whether the worker has ended. See main.main."""
    hang_up = _HangUp()
    node: ReconstructionNode | None = None
    executor: Any = None
    code, ended = 0, True
    try:
        node = _made(arguments, load or load_pipeline, take_signals)
        if node is None:
            return 1, True
        try:
            executor = executors.create(executors.chosen(node.config.executor))
        except ConfigError as error:
            node.get_logger().fatal(str(error))
            code = 1
        else:
            executor.add_node(node)
            node.start()
            executors.spin(executor)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if not _signalled():
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the shutdown
        # rclpy's thread for signals walks the list of guard conditions without a lock, and the end of the executor frees that list:
        # a crash, now and then, on a busy machine. This ends the thread and waits for it.
        uninstall_signal_handlers()
        if executor is not None:
            executor.shutdown(0.0)
        if node is not None:
            ended = node.close() and node.exit_code == 0
            code = code or node.exit_code
            node.destroy_node()
        rclpy.try_shutdown()
    return code or (128 + signal.SIGHUP if hang_up.seen else 0), ended


def _made(arguments: list[str], load: Load, take_signals: Callable[[], None]) -> ReconstructionNode | None:
    """Creates the node; None, with the reason in one line, if that fails. Raises KeyboardInterrupt if a signal came meanwhile."""
    try:
        rclpy.init(args=["come_node", *arguments])
    except KeyboardInterrupt:
        raise
    except Exception as error:  # no signal can have shut it down before init has finished
        print(f"come_ros node: {explained(error)}", file=sys.stderr)
        return None
    finally:
        take_signals()
    try:
        node = ReconstructionNode(load)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if _signalled():
            raise KeyboardInterrupt from error
        rclpy.logging.get_logger("come").fatal(explained(error))
        return None
    for path in params_files(arguments):
        node.check_params_file(path)
    return node


def _signalled(within_s: float = 0.5) -> bool:
    """Whether a signal is the reason of a failure. A signal shuts the context down while objects are being created; and since rclpy
    does that in another thread, Python's KeyboardInterrupt may come first and appear as another error from the conversion of a
    message."""
    end = time.monotonic() + within_s
    while rclpy.ok():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
