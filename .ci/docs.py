"""Writes what the pages repeat from the code: `make docs`. With --check it writes nothing and says which file is not current.

Tables of parameters, diagnostics, commands and results, each between marks in its page; and all of config/come.yaml and
config/come.schema.json.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark import stamped  # noqa: E402

from come_ros.config import parameters  # noqa: E402
from come_ros.files import write_text  # noqa: E402
from come_ros.parameter_text import commented_yaml, schema  # noqa: E402
from come_ros.ros.diagnostics.keys import STATUSES  # noqa: E402
from come_ros.tools.cli import COMMANDS  # noqa: E402

COME_YAML, COME_SCHEMA = ROOT / "config" / "come.yaml", ROOT / "config" / "come.schema.json"
HEAD = """# Every parameter of come_ros with its default; written by `make docs`. A parameters file of yours needs only the differences.
# Words that YAML would read as something else are quoted: mode: "off".
# yaml-language-server: $schema=come.schema.json
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
    return commented_yaml(HEAD, ((p, p.default) for p in parameters()))


def come_schema() -> str:
    """config/come.schema.json."""
    return json.dumps(schema(), indent=1) + "\n"


def main() -> int:
    files = {ROOT / page: with_tables(page, (ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
    files |= {COME_YAML: come_yaml(), COME_SCHEMA: come_schema()}
    old = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{path.relative_to(ROOT)} {'is not current: run make docs' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            write_text(path, files[path])
    return int(bool(old) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
