"""Writes what the pages repeat from the code: `make docs`. With --check it writes nothing and says which file is not current.

Tables of parameters, diagnostics, commands and results, each between marks in its page; and all of config/come.yaml.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark import stamped  # noqa: E402

from come_ros.config import parameters  # noqa: E402
from come_ros.files import write_text  # noqa: E402
from come_ros.parameter import Parameter  # noqa: E402
from come_ros.ros.diagnostics.keys import STATUSES  # noqa: E402
from come_ros.tools.cli import COMMANDS  # noqa: E402

COME_YAML = ROOT / "config" / "come.yaml"
HEAD = """# Every parameter of come_ros with its default; written by `make docs`. A parameters file of yours needs only the differences.
# Words that YAML would read as something else are quoted: mode: "off".
/**:
  ros__parameters:
"""


def parameter_table() -> str:
    """As declared in come_ros/config.py and config_groups.py."""
    rows = ["| parameter | default | allowed | live | meaning |", "|---|---|---|---|---|"]
    for p in parameters():
        default = f"`{str(p.default).lower() if p.type is bool else p.default}`" if p.default != "" else '`""`'
        allowed = p.range_text().replace("|", "\\|") or {bool: "true \\| false", str: "text"}[p.type]
        rows.append(f"| `{p.name}` | {default} | {allowed} | {'yes' if p.dynamic else ''} | {p.doc} |")
    return "\n".join(rows) + "\n"


def diagnostics_table() -> str:
    """As declared in come_ros/ros/diagnostics/keys.py."""
    rows = ["| status | key | meaning |", "|---|---|---|"]
    for status, keys in STATUSES.items():
        names = [f"`come: {status}`", *[""] * (len(keys) - 1)]
        rows += [f"| {name} | `{key}` | {keys[key]} |" for name, key in zip(names, keys, strict=True)]
    return "\n".join(rows) + "\n"


def command_table() -> str:
    """As `come_ros --help` lists them."""
    rows = ["| command | what it does |", "|---|---|"]
    rows += [f"| `come_ros {name}` | {text} |" for name, text in COMMANDS.items()]
    return "\n".join(rows) + "\n"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "config/README.md": {"parameters": parameter_table},
    "come_ros/ros/README.md": {"diagnostics": diagnostics_table},
    "come_ros/tools/README.md": {"commands": command_table},
    "test/benchmark/README.md": {"results": stamped.index},
}


def with_tables(page: str, text: str) -> str:
    """`text` of that page with its tables written again between their marks."""
    for name, table in PAGES[page].items():
        marks = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marks.search(text):
            raise SystemExit(f"{page} has lost its marks <!-- {name}: ... --> and <!-- /{name} -->: put them back")
        content = table()
        text = marks.sub(lambda found, content=content: f"{found[1]}{content}{found[2]}", text)
    return text


def come_yaml() -> str:
    """config/come.yaml, group by group."""
    lines, group = [], ""
    for p in sorted(parameters(), key=lambda p: "." in p.name):  # those without a group first, else as declared
        before, _, name = p.name.rpartition(".")
        if before != group:
            lines.append(f"    {before}:")
            group = before
        indent = 6 if group else 4
        lines.append(f"{' ' * indent}{name}: {scalar(p.default)}  # {p.doc}{limits(p)}")
    return HEAD + "\n".join(lines) + "\n"


def scalar(value: Any) -> str:
    """As YAML reads it back."""
    import yaml

    if isinstance(value, str) and (value == "" or yaml.safe_load(value) != value):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def limits(p: Parameter) -> str:
    """What is allowed, and whether it may change while the node runs."""
    allowed = p.range_text()
    brackets = (" ({})" if p.choices else " [{}]").format(allowed) if allowed else ""
    return brackets + (" (live)" if p.dynamic else "")


def main() -> int:
    files = {ROOT / page: with_tables(page, (ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
    files[COME_YAML] = come_yaml()
    old = [path for path, text in files.items() if path.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{path.relative_to(ROOT)} {'is not current: run make docs' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            write_text(path, files[path])
    return int(bool(old) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
