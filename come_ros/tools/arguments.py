"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from ..config import Config, parameters
from ..config_text import load_config, with_words
from ..errors import OutputError
from ..files import shown

log = logging.getLogger("come_ros")


def add_config_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--params, --weights and --set, as `configured` reads them. several: whether --set accepts several parameters at once, which
    is ambiguous in a command with positional arguments."""
    parser.add_argument("--params", metavar="FILE", help="ROS parameters file, as for the node")
    parser.add_argument("--weights", metavar="FILE", help="weights file instead of the bundled model")
    how: dict[str, Any] = {"nargs": "+", "action": "extend"} if several else {"action": "append"}
    parser.add_argument("--set", metavar="NAME=VALUE", default=[], help="one parameter; wins over --params", **how)


def configured(options: argparse.Namespace) -> Config:
    """Parameters file, then --weights, then --set. Raises ConfigError."""
    config = Config() if options.params is None else load_config(options.params)
    if options.weights is not None:
        config = config.replace(weights=options.weights)
    return with_words(config, options.set)


def configuration(options: argparse.Namespace) -> Config:
    """The same for a command that works on a recording: parameters without effect there are reported. Raises ConfigError."""
    config = configured(options)
    if unread := [p.name for p in parameters() if p.node_only and config.get(p.name) != p.default]:
        log.warning("only the live node reads %s: no effect here", ", ".join(unread))
    for told in config.without_effect():
        log.warning("%s", told)
    other = getattr(options, "odometry", None) is not None  # poses that are not for scoring
    given = {"known.depth": config.known.depth, "known.odometry": config.known.odometry and not other}
    if unused := [name for name, on in given.items() if on]:
        log.warning(
            "%s for the node: here the recording's depth and poses are used for scoring",
            " and ".join(unused) + (" is" if len(unused) == 1 else " are"),
        )
    return config.replace(**dict.fromkeys(unused, False))


def words_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, ...]:
    """The words that `parser` would read these options from; defaults are left out. parser: without positional arguments."""
    words: list[str] = []
    for action in parser._actions:
        value = getattr(options, action.dest, action.default)
        if not action.option_strings or value == action.default:
            continue
        name = action.option_strings[-1]
        if action.nargs == 0:
            words.append(name)
        else:
            words += [word for each in (value if isinstance(value, list) else [value]) for word in (name, str(each))]
    return tuple(words)


def add_common_arguments(parser: argparse.ArgumentParser, made: str) -> None:
    """Arguments shared by the commands that train a network for a fixed model. made: the files that are written."""
    parser.add_argument("-o", "--output", required=True, help=f"folder for {made}, state, log and curve")
    parser.add_argument(
        "--source", action="append", default=[], metavar="PATH",
        help="bag, folder of images, TUM folder or video to learn from, or the output of `come_ros fleet`; may be repeated (default: "
        "procedural rooms)",
    )  # fmt: skip
    parser.add_argument("--weights", default="", help="the model's weights file (default: the bundled model)")
    parser.add_argument("--side", type=int, default=0, help="longer side of the images, px (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default %(default)s)")
    add_resume_arguments(parser)


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for an existing run in the output folder, which `training_folder` applies."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue from the state in the output folder")
    how.add_argument("--overwrite", action="store_true", help="replace an earlier run in the output folder")


def training_folder(args: argparse.Namespace, state: str) -> Path:
    """Makes the output folder of a training run. state: name of the file that a run can be resumed from.

    Raises OutputError if it holds a run and neither --resume nor --overwrite is given, or if the folder cannot be created.
    """
    folder = Path(args.output)
    there = [path.name for path in folder.glob("*") if path.name == state or path.suffix == ".safetensors"]
    if there and not (args.resume or args.overwrite):
        raise OutputError(
            f"{shown(folder)} already holds a run ({', '.join(sorted(there))}): continue it with --resume, replace it with --overwrite, "
            f"or choose another folder with -o"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {shown(folder)}: {error.strerror}: choose a folder with enough space and write permission"
        ) from error
    return folder
