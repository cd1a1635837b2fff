"""Imports point one way: a module knows its own layer and those below it, wherever the import stands, and no imports go in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("errors", "drops", "come_ros"),
    ("types", "plugins", "geometry", "parameter_file"),
    ("parameter", "threads", "interrupts"),
    ("config_groups",),
    ("config", "config_text", "parameter_text", "messages", "bundled", "weights", "kernels"),
    ("thread_governor",),
    ("companions", "files", "progress", "tokens"),
    ("accelerators",),
    # what a frame is and what a model makes of it
    ("camera",),
    ("backbones",),
    ("evaluation",),  # of arrays; whole recordings and rooms stand further up
    ("timeline", "window"),
    ("tracking", "verdict"),
    ("refinement",),
    ("alignment", "governor", "keyframes"),  # the other stages of the pipeline
    ("scale",),
    ("odometry_frame",),
    ("pipeline", "self_check"),
    ("mapping",),
    ("outputs",),
    ("datasets",),
    ("evaluation.recordings", "evaluation.rooms", "results"),
    ("exports",),
    ("view",),
    ("fleet",),
    ("training",),
    ("testing",),
    ("ros",),
    ("tools",),
)
"""from the lowest to the highest; a folder stands for all that is in it and not named by itself"""


def layer(module: str) -> int:
    """Raises KeyError for a module of no layer."""
    name = module.removeprefix("come_ros.")
    found = [(len(head), i) for i, heads in enumerate(LAYERS) for head in heads if f"{name}.".startswith(f"{head}.")]
    if not found:
        raise KeyError(f"{module}: in which layer is it? Add it to LAYERS")
    return max(found)[1]


def imports(root: Path) -> dict[str, set[str]]:
    """Module of the package under `root` -> those of the same package that it imports: when it is imported itself, in a function, or
    for its types."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / "come_ros").rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*base, *filter(None, [node.module])])
                found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in files else source for a in node.names}
        graph[module] = (found & set(files)) - {module, "come_ros"}  # the package itself holds only the version
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which can be reached from every other."""

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        pending = [module]
        while pending:
            pending += graph[pending.pop()] - seen
            seen.update(pending)
        return seen

    reach = {module: reached(module) for module in graph}
    groups = {frozenset(m for m in reach[module] if module in reach[m]) for module in graph if module in reach[module]}
    return [set(group) for group in groups]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(ROOT)


@pytest.mark.slow
def test_no_module_imports_from_a_layer_above_its_own(graph: dict[str, set[str]]) -> None:
    upward = [f"{m} imports {other}" for m in sorted(graph) for other in sorted(graph[m]) if layer(other) > layer(m)]
    assert not upward


@pytest.mark.slow
def test_no_imports_go_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert not circles(graph)


def test_every_layer_holds_something(graph: dict[str, set[str]]) -> None:
    unused = [
        h
        for heads in LAYERS
        for h in heads
        if h != "come_ros" and not any(f"{m}.".startswith(f"come_ros.{h}.") for m in graph)
    ]
    assert not unused


def test_circles_and_upward_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "types": "",
        "window": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .pipeline import Pipeline\n",
        "pipeline": "from . import types\n\ndef f():\n    from come_ros import window\n",
        "keyframes": "class K:\n    def f(self):\n        from .tools.bag import run\n",
        "tools/__init__": "",
        "tools/bag": "from ..types import Frame\nimport come_ros.pipeline\n",
    }
    for name, text in files.items():
        path = tmp_path / "come_ros" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = imports(tmp_path)
    assert graph["come_ros.tools.bag"] == {"come_ros.types", "come_ros.pipeline"}
    assert circles(graph) == [{"come_ros.window", "come_ros.pipeline"}]
    upward = {(m, other) for m in graph for other in graph[m] if layer(other) > layer(m)}
    assert upward == {("come_ros.window", "come_ros.pipeline"), ("come_ros.keyframes", "come_ros.tools.bag")}
