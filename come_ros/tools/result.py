"""What a command prints at its end on standard output: words, or with --json one JSON object."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--quiet and --json, which every command takes; a --json of the command's own is left alone."""
    if "--json" not in parser._option_string_actions:
        parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress and no hints: results, warnings and errors")


def print_result(options: argparse.Namespace, value: Any, text: str) -> None:
    """`text`, or with --json `value`, whose numbers that are not finite become null."""
    print(json.dumps(_finite(value), indent=2) if options.json else text, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
