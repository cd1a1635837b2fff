"""The program `come_node`: creates the node, spins it, and ends it on a signal."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

import rclpy.task
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import uninstall_signal_handlers

from ..errors import ConfigError
from ..threads import begin
from .arguments import check_environment, explained, params_files, ros_arguments
from .environment import use_large_message_profile
from .node import ReconstructionNode
from .worker import Load, load_pipeline


def main(args: list[str] | None = None, load: Load = load_pipeline) -> int:
    """Runs the node until SIGINT or SIGTERM. args: of the command line, without the program's name. load: creates the pipeline from
    the configuration, to run another model.

    Returns 0 after a requested stop; 1 if the node could not be created, with the reason in one log line; 2 if `args` holds unknown
    arguments; DEVICE_LOST if the GPU no longer responds.
    """
    try:
        arguments = ros_arguments(sys.argv[1:] if args is None else args)
    except ConfigError as error:
        print(f"come_ros node: {error}", file=sys.stderr)
        return 2
    begin()
    use_large_message_profile()
    code, ended = _spin(arguments, load)
    if not ended:
        # A pass or a load that cannot be interrupted is abandoned: waiting for it may take minutes, and a lost device may never let
        # the interpreter end. The DDS participant ends with the last reference to it; otherwise its shared memory would be left behind.
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _spin(arguments: list[str], load: Load) -> tuple[int, bool]:
    """Returns the exit code, and whether the worker has ended."""
    node: ReconstructionNode | None = None
    executor: SingleThreadedExecutor | None = None
    code, ended = 0, True
    try:
        node = _made(arguments, load)
        if node is None:
            return 1, True
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        node.start()
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if not _signalled():
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
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
    return code, ended


def _made(arguments: list[str], load: Load) -> ReconstructionNode | None:
    """Creates the node; None, with the reason in one line, if that fails. Raises KeyboardInterrupt if a signal came meanwhile."""
    try:
        check_environment()
        rclpy.init(args=["come_node", *arguments])
    except KeyboardInterrupt:
        raise
    except Exception as error:  # no signal can have shut it down before init has finished
        print(f"come_ros node: {explained(error)}", file=sys.stderr)
        return None
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


if __name__ == "__main__":
    sys.exit(main())
