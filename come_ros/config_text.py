"""Configurations as text: parameter files, and the words NAME=VALUE and NAME:parameter=value of command lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .config import CHOOSING, Config, parameters, plugged
from .errors import ConfigError
from .parameter import declared, did_you_mean
from .parameter_file import read_parameters, read_value
from .plugins import Registry


def load_config(path: str, base: Config | None = None) -> Config:
    """Config from a ROS parameters file, as the node `/come` reads it (parameter_file.py), on top of `base`.

    Raises ConfigError if the file cannot be read, is not a parameters file, or holds an unknown or invalid parameter.
    """
    return (base or Config()).replace(**read_parameters(path))


def with_words(config: Config, words: Iterable[str]) -> Config:
    """`config` with parameters as they are given on a command line, each NAME=VALUE with VALUE as ROS reads it. Raises ConfigError."""
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} must be NAME=VALUE, such as window.size=6")
        given[name] = value
    chosen = {name: given.get(name, config.get(name)) for name in CHOOSING}
    kinds = {p.name: p.type for p in parameters()}
    for prefix, kind in plugged(chosen).items():
        kinds |= {p.name: p.type for p in declared(kind, prefix)}
    changes: dict[str, Any] = {}
    for name, value in given.items():
        changes[name] = value if kinds.get(name) is str else read_value(value)
    return config.replace(**changes)


def split_name(text: str) -> tuple[str, list[str]]:
    """NAME, or NAME:parameter=value,... as command lines give it -> name (which may be module:Class) and words parameter=value."""
    head, colon, tail = text.rpartition(":")
    name, given = (head, tail) if colon and ("=" in tail or not tail) else (text, "")
    return name, [word for word in given.split(",") if word]


def own_parameters(registry: Registry, name: str, words: Iterable[str]) -> Any:
    """The `Parameters` of that plug-in with some given as NAME=VALUE; None if it has none. Raises ConfigError."""
    kind = registry.parameters_of(name)
    known = {} if kind is None else {p.name: p for p in declared(kind)}
    values = {}
    for word in words:
        key, _, value = word.partition("=")
        if kind is None:
            raise ConfigError(f"{word!r} is given to the {registry.kind} {name}, which has no parameters: leave it out")
        if key not in known:
            raise ConfigError(f"the {registry.kind} {name} has no parameter {key!r}{did_you_mean(key, known)}")
        values[key] = known[key].coerce(value if known[key].type is str else read_value(value))
        known[key].check(values[key])
    return None if kind is None else kind(**values)


def with_accelerator(config: Config, text: str) -> Config:
    """`config` with the accelerator that `text` names, see split_name. Its parameters: those of the group `accelerator`, of
    the plug-in's own, or any other by its full name. Raises ConfigError."""
    name, given = split_name(text)
    config = config.replace(**{"accelerator.name": name})
    known = [p.name for p in config.parameters()]
    full = {n: n for n in known} | {
        n.rpartition(".")[2]: n for n in known if n.startswith("accelerator.")
    }  # its own win
    words = []
    for word in given:
        key, equals, value = word.partition("=")
        if key not in full:
            near = [n for n in full if full[n].startswith("accelerator.") and "." not in n]
            raise ConfigError(
                f"the accelerator {name} has no parameter {key!r}{did_you_mean(key, dict.fromkeys(near))}"
            )
        words.append(f"{full[key]}{equals}{value}")
    return with_words(config, words)
