"""The program `come_node`: reads its command line, then loads ROS and runs the node."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

from ..errors import ConfigError, Stopped
from ..interrupts import Interrupts, postponed
from ..threads import begin
from .arguments import check_environment, ros_arguments
from .environment import use_large_message_profile

if TYPE_CHECKING:
    from .worker import Load

HUNG_UP = 128 + signal.SIGHUP  # exit code after SIGHUP


def main(args: list[str] | None = None, load: Load | None = None) -> int:
    """Runs the node until SIGINT, SIGTERM or SIGHUP. args: of the command line, without the program's name. load: creates the pipeline
    from the configuration, to run another model.

    Returns 0 after a requested stop, HUNG_UP after SIGHUP; 1 if the node could not be created, with the reason in one log line; 2 if
    `args` holds unknown arguments; DEVICE_LOST if the GPU no longer responds.
    """
    try:
        arguments = ros_arguments(sys.argv[1:] if args is None else args)
    except ConfigError as error:
        print(f"come_ros node: {error}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as handover:
        try:
            with Interrupts() as stopped, stopped.raising():
                check_environment()
                begin()
                use_large_message_profile()
                from .spin import spin  # ROS: it takes a second, and rclpy's own handlers come after that

                handover.enter_context(postponed())
        except Stopped:
            return HUNG_UP if stopped.number == signal.SIGHUP else 0
        except ConfigError as error:
            print(f"come_ros node: {error}", file=sys.stderr)
            return 1
        code, ended = spin(arguments, load, handover.close)
    if not ended:
        # A pass or a load that cannot be interrupted is abandoned: waiting for it may take minutes, and a lost device may never let
        # the interpreter end. The DDS participant ends with the last reference to it; otherwise its shared memory would be left behind.
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
