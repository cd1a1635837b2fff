"""The command `come_ros`: finds the subcommand, parses its options, and turns errors that a user can fix into one line.

A subcommand is a module here: its docstring is its help (from a line "examples:" on, below the options), with
`add_arguments(parser)` and `run(options) -> int | None` (exit code). It is imported only when it is called, so
`come_ros --help` needs neither torch nor ROS.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import __version__
from ..errors import ComeRosError, Stopped
from ..interrupts import Interrupts
from ..progress import quietly
from .ending import mute, print_error
from .result import add_output_arguments

COMMANDS = {
    "demo": "render a walk round a room (or take a bag), play it to the live node over DDS, score and plot it",
    "bag": "reconstruct a bag, folder or video offline: cloud, trajectory, depth and scores, without DDS",
    "fleet": "reconstruct many recordings over the machines of a Ray cluster, each as bag does",
    "export": "write results as depth images, COLMAP, nerfstudio, TUM, KITTI, PLY, PCD, GLB or a mesh",
    "view": "show results, or a running node, in 3D in the browser",
    "play": "play a bag, folder or video over DDS as a camera would",
    "monitor": "show rates, latency and faults of a running node in the terminal",
    "node": "run the live ROS 2 node; takes ROS arguments (--ros-args ...)",
    "train": "train the small model on procedural rooms",
    "eval": "score the model, dense and accelerated, against ground truth and trivial baselines",
    "bench": "measure the model's speed on this machine, dense and accelerated, or everything around it",
    "adapt": "teach the model your camera and place from a recording, without labels",
    "distill": "train Co-Me's predictor on recordings or rendered rooms",
    "train-pace": "train PaceVGGT's networks, which choose the patches to keep and rebuild the others",
    "calibrate": "measure which layers of a model may read fewer keys (for Good Token Hunting)",
    "params": "list, search and explain parameters, and write a file of those that differ from the defaults",
    "completion": "print what completes commands, options and parameters in your shell",
    "doctor": "check this machine: what works, what is missing, and how to fix it",
}
_NODE_HELP = """usage: come_ros node [--params FILE] [--set NAME=VALUE] ... [--ros-args [-r FROM:=TO] [-p NAME:=VALUE] ...]

Runs the live node. Topics are remapped and parameters set as for any ROS 2 node; --params and --set are those of the other commands.
config/README.md lists the parameters, come_ros/ros/README.md the topics.

examples:
  come_ros node --set window.size=6 --ros-args -r image:=/camera/image_raw
  come_ros node --ros-args -r image:=/camera/image_raw
  come_ros node --ros-args -r image:=/camera/image_raw --params-file my.yaml -p window.size:=6"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `come_ros ARGV...` (default: this process's arguments) and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # a terminal without Unicode, or an invalid file name, must not end a command
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        import difflib  # only now, so that --help is quick

        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        parser.error(
            f"invalid choice: {argv[0]!r}"
            + (f"; did you mean {near[0]!r}?" if near else f"; commands are {', '.join(COMMANDS)}")
        )
    name = parser.parse_args(argv[:1] or ["--help"]).command  # --help and --version exit here
    from ..threads import begin

    begin()  # before numpy and torch are imported
    try:
        code = _run_node(argv[1:]) if name == "node" else _run_tool(name, argv[1:])
        sys.stdout.flush()  # here, where it can be told what went wrong
        return code
    except Stopped as stop:
        _fail(name, str(stop) if stop.kept else f"{stop}, before there was any result")
        return 128 + stop.number
    except ComeRosError as error:
        return _fail(name, str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "come_ros":
            raise  # a module of come_ros itself: a bug, shown in full
        return _fail(name, f"needs the Python package {error.name!r}, which is not installed: see `come_ros doctor`")
    except KeyboardInterrupt as error:
        return 128 + (error.args[0] if error.args else signal.SIGINT)  # see Interrupts
    except BrokenPipeError:  # the reader of our output has closed (`come_ros ... | head`)
        mute(sys.stdout)
        return 141
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        mute(sys.stdout)
        return _fail(name, f"cannot write its output: {error.strerror}: redirect stdout to a place with room")


def _open_streams() -> None:
    """Of a program that was started without stdin, stdout or stderr: else its first files would take their places."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _parser() -> argparse.ArgumentParser:
    rows = [f"  {name:10} {text}" for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="come_ros",
        usage="come_ros [--version] COMMAND [options]",
        description="Dense geometry from one uncalibrated camera, in real time, for ROS 2 robots.",
        epilog="commands:\n" + "\n".join(rows) + "\n\n`come_ros COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"come_ros {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS), help="one of the commands below")
    return parser


def _run_tool(name: str, argv: list[str]) -> int:
    """Runs a subcommand. A signal ends it where it stands, by Stopped, except where it opens Interrupts itself to keep what it has."""
    with Interrupts() as stopped, stopped.raising():
        return _run(importlib.import_module(f"come_ros.tools.{name.replace('-', '_')}"), name, argv)


def command_parser(tool: ModuleType, name: str) -> argparse.ArgumentParser:
    """The parser of the command `name`, which `tool` holds."""
    description, *examples = re.split(r"^(?=examples:)", tool.__doc__ or "", flags=re.IGNORECASE | re.MULTILINE)
    parser = argparse.ArgumentParser(
        prog=f"come_ros {name}",
        description=description.strip(),
        epilog="".join(examples).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tool.add_arguments(parser)
    add_output_arguments(parser)
    return parser


def _run(tool: ModuleType, name: str, argv: list[str]) -> int:
    parser = command_parser(tool, name)
    options = parser.parse_args(argv)
    if (
        any(word in ("-o", "--output", "--out") and not place.strip() for word, place in pairwise(argv))
        or "--output=" in argv
    ):
        parser.error("-o is empty: name a place for the results")
    for key, value in vars(options).items():
        setattr(options, key, _at_home(value))
    with quietly(options.quiet):
        return tool.run(options) or 0


def _at_home(value: Any) -> Any:
    """An option, with ~/ at its start as the home folder: shells leave it as it is within quotes and after `=`."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    if isinstance(value, Path) and value.parts[:1] == ("~",):
        return value.expanduser()
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _run_node(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print(_NODE_HELP)
        return 0
    return importlib.import_module("come_ros.ros.main").main(argv) or 0


def _fail(name: str, message: str) -> int:
    print_error(name, message)
    return 1


if __name__ == "__main__":
    sys.exit(main())
