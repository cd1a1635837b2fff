"""Parameters of the node and of all commands: what there is, what one means, and a file of what differs from the defaults.

examples:
  come_ros params                                   all of them, with default and range
  come_ros params list window map                   those of these groups
  come_ros params search scale                      those whose name or meaning has all these words
  come_ros params explain window.size cloud.stride  everything about these
  come_ros params explain window.size --params my.yaml     and their value in this file
  come_ros params write my.yaml --set window.size=6 --set keyframe.mode=every
  come_ros params write --params old.yaml           the differences of a file, to the screen, with comments
  come_ros params schema > come.schema.json         for editors that check YAML
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import ConfigError, OutputError
from ..files import shown, write_text
from ..parameter import Parameter, did_you_mean
from ..parameter_text import commented_yaml, differences, schema, yaml_scalar
from .arguments import add_config_arguments, configured
from .result import print_result

ACTIONS = ("list", "search", "explain", "write", "schema")
HEAD = "# What differs from the defaults of come_ros; written by `come_ros params write`.\n"
DOC_WIDTH = 40  # least columns of a terminal for meanings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="what to do (default: %(default)s)")
    parser.add_argument(
        "words", nargs="*", metavar="WORD",
        help="list: names or groups; search: words; explain: names; write: the file (default: the screen)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="write: replace the file")
    add_config_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 0. Raises ComeRosError."""
    config = configured(options)
    known = {p.name: p for p in config.parameters()}
    words: list[str] = options.words
    if options.action == "schema":
        _no_words(words, "schema")
        print(json.dumps(schema(), indent=1))
    elif options.action == "write":
        _write(config, words, options)
    elif options.action == "explain":
        if not words:
            raise ConfigError(
                "explain needs the name of a parameter, such as window.size: `come_ros params` lists them"
            )
        _show([_named(name, known) for name in words], config, options.json, whole=True)
    else:
        found = _listed(words, known) if options.action == "list" else _found(words, known)
        _show(found, config, options.json, whole=False)
    return 0


def _no_words(words: list[str], action: str) -> None:
    if words:
        raise ConfigError(f"{action} takes no words, but {' '.join(words)!r} was given: leave it out")


def _named(name: str, known: dict[str, Parameter]) -> Parameter:
    if name not in known:
        raise ConfigError(f"unknown parameter {name!r}{did_you_mean(name, known)}")
    return known[name]


def _listed(words: list[str], known: dict[str, Parameter]) -> list[Parameter]:
    """All, or those with one of these names or in one of these groups."""
    for word in words:
        if word not in known and not any(name.startswith(f"{word}.") for name in known):
            groups = dict.fromkeys(name.rpartition(".")[0] for name in known if "." in name)
            raise ConfigError(f"there is no parameter or group {word!r}{did_you_mean(word, {**groups, **known})}")
    return [p for p in known.values() if not words or any(p.name == w or p.name.startswith(f"{w}.") for w in words)]


def _found(words: list[str], known: dict[str, Parameter]) -> list[Parameter]:
    """Those with all words in name, meaning or choices; names first."""
    if not words:
        raise ConfigError("search needs a word, such as drift: `come_ros params` lists all parameters")
    found = [p for p in known.values() if all(w.lower() in f"{p.name} {p.doc} {p.range_text()}".lower() for w in words)]
    if not found:
        raise ConfigError(f"no parameter has {' and '.join(map(repr, words))} in its name or meaning: try another word")
    return sorted(found, key=lambda p: not any(w.lower() in p.name for w in words))


def _show(found: Iterable[Parameter], config: Config, as_json: bool, whole: bool) -> None:
    if as_json:
        print(json.dumps([_facts(p, config) for p in found], indent=1))
    elif whole:
        print("\n\n".join(_explained(p, config) for p in found))
    else:
        print("\n".join(_rows(list(found), config)))


def _facts(p: Parameter, config: Config) -> dict[str, Any]:
    return {
        "name": p.name, "type": p.type.__name__, "default": p.default, "value": config.get(p.name), "low": p.low, "high": p.high,
        "choices": list(p.choices), "live": p.dynamic, "node_only": p.node_only, "meaning": p.doc,
        "only": None if p.only is None else {"parameter": p.only[0], "values": list(p.only[1])},
    }  # fmt: skip


def _explained(p: Parameter, config: Config) -> str:
    value = config.get(p.name)
    rows = {
        "meaning": p.doc,
        "default": yaml_scalar(p.default),
        "value": yaml_scalar(value) if value != p.default else "",
        "allowed": p.range_text() or {bool: "true or false", str: "text"}.get(p.type, "a number"),
        "changes": "while the node runs: ros2 param set /come " + p.name + " ..." if p.dynamic else "at start only",
        "read by": "the live node only" if p.node_only else "",
        "only with": f"{p.only[0]}: {' or '.join(map(str, p.only[1]))}" if p.only is not None else "",
        "set it": f"--set {p.name}=VALUE, or {p.name}: VALUE in a parameters file",
    }
    return "\n".join([p.name, *(f"  {key:9}  {text}" for key, text in rows.items() if text)])


def _rows(found: list[Parameter], config: Config) -> list[str]:
    """One line each, cut at the terminal's width if there is one."""
    width = max(len(p.name) for p in found)
    room = shutil.get_terminal_size((0, 0)).columns or 10_000
    out = []
    for p in found:
        value, changed = config.get(p.name), config.get(p.name) != p.default
        text = f"{p.name:{width}}  {yaml_scalar(value)}{' (changed)' if changed else ''}"
        allowed = p.range_text()
        text += f"  [{allowed}]" if allowed else ""
        left = max(room - len(text) - 2, DOC_WIDTH)
        doc = p.doc if len(p.doc) <= left else p.doc[: left - 3] + "..."
        out.append(f"{text}  {doc}")
    return out


def _write(config: Config, words: list[str], options: argparse.Namespace) -> None:
    if len(words) > 1:
        raise ConfigError(f"write makes one file, but {len(words)} names are given: {' '.join(words)}")
    changed = differences(config)
    if not changed:
        raise ConfigError(
            "every parameter has its default, so there is nothing to write: give --set NAME=VALUE, or --params FILE"
        )
    text = commented_yaml(HEAD, changed)
    if not words:
        print_result(options, {p.name: value for p, value in changed}, text.rstrip("\n"))
        return
    path = Path(words[0]).expanduser()
    if path.exists() and not options.overwrite:
        raise OutputError(f"{shown(path)} exists: choose another name, or replace it with --overwrite")
    write_text(path, text)
    text = f"{len(changed)} {'parameter' if len(changed) == 1 else 'parameters'} in {shown(path)}"
    print_result(options, {"file": str(path), "parameters": {p.name: value for p, value in changed}}, text)
