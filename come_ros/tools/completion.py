"""Prints a script that completes commands, options, files and parameters of come_ros in your shell.

The script is written once and knows everything by itself, so that completing is instant; print it again after an update.

examples:
  come_ros completion bash > ~/.local/share/bash-completion/completions/come_ros     then open a new shell
  come_ros completion zsh > ~/.zfunc/_come_ros           with `fpath+=~/.zfunc; autoload -U compinit; compinit` in ~/.zshrc
  come_ros completion fish > ~/.config/fish/completions/come_ros.fish
  eval "$(come_ros completion bash)"                     in this shell only
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from ..config import parameters
from ..errors import ComeRosError
from .result import print_result

SHELLS = ("bash", "zsh", "fish")
FILES, FOLDERS = ("FILE", "FILE|none", "TOPIC|FILE"), ("DIR", "OUT")
OPTIONS_OF_PATHS = {"-o", "--output", "--params", "--weights", "--source", "--bag", "--material"}
SET = {
    "bash": """_come_ros_set() {
  compopt -o nospace 2>/dev/null
  compgen -W "{names}" -S = -- "$1"
}""",
    "zsh": """_come_ros_set() {
  local -a names=({names})
  compadd -S '=' -q -a names
}""",
}
"""shell -> a function that completes --set"""


class CompletionError(ComeRosError):
    """The package that writes the script is missing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that you use")


def run(options: argparse.Namespace) -> int:
    """Returns 0. Raises CompletionError."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise CompletionError("needs the Python package shtab: pip install shtab (45 kB, no dependencies)") from None
    names = " ".join(p.name for p in parameters())
    function = SET.get(options.shell, "").replace("{names}", names)
    preamble: Any = {options.shell: function}  # its annotation says a text, its documentation this
    script = shtab.complete(whole_parser(), options.shell, root_prefix="come_ros", preamble=preamble)
    print_result(options, {"shell": options.shell, "script": script}, script)
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with all commands and their options, of which the command line itself loads only what it needs."""
    import shtab

    from .cli import COMMANDS, command_parser

    parser = argparse.ArgumentParser(prog="come_ros")
    parser.add_argument("--version", action="store_true", help="version")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, text in COMMANDS.items():
        if name == "node":
            inner = commands.add_parser(name, help=text)
            inner.add_argument("--params", metavar="FILE", help="ROS parameters file")
            inner.add_argument("--set", metavar="NAME=VALUE", action="append", help="one parameter")
            inner.add_argument("--ros-args", action="store_true", help="arguments of ROS follow")
        else:
            tool = importlib.import_module(f"come_ros.tools.{name.replace('-', '_')}")
            inner = command_parser(tool, name)
            inner.description = None
            inner = commands.add_parser(name, help=text, parents=[inner], add_help=False, conflict_handler="resolve")
        for action in inner._actions:
            _complete(action, shtab)
    return parser


def _complete(action: Any, shtab: Any) -> None:
    """Says what the values of an option are, where it is not a choice."""
    names, metavar = set(action.option_strings), str(action.metavar or "")
    if action.choices or action.nargs == 0:
        return
    if "--set" in names:
        action.complete = dict.fromkeys(SET, "_come_ros_set")
    elif metavar in FOLDERS:
        action.complete = shtab.DIRECTORY
    elif metavar in FILES or names & OPTIONS_OF_PATHS or not names or action.type is Path:
        action.complete = shtab.FILE
