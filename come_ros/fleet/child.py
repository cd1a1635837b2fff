"""Starts a module of come_ros in a process that does not outlive its parent: python -m come_ros.fleet.child PARENT MODULE ARGUMENTS...

PARENT: process id. If a worker is killed, or its node dies, nobody is left to stop what it has started. Linux only; elsewhere the process
simply runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    parent, module, *arguments = words
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before that
        os._exit(128 + signal.SIGKILL)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
