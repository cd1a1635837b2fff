"""What the package imports of others: ROS and torch only where they belong. Read from the source alone; layers: test_layers.py."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "come_ros"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROS = {
    *("ament_index_python", "builtin_interfaces", "cv_bridge", "diagnostic_msgs", "diagnostic_updater"),
    *(
        "geometry_msgs",
        "launch",
        "launch_ros",
        "lifecycle_msgs",
        "message_filters",
        "nav_msgs",
        "rcl_interfaces",
        "rclpy",
    ),
    *("rosbag2_py", "rosgraph_msgs", "sensor_msgs", "sensor_msgs_py", "std_msgs", "std_srvs", "tf2_msgs", "tf2_ros"),
}
HEAVY = {"torch", "cupy", "triton"}
HEAVY_PLACES = ("backbones/", "accelerators/", "kernels/", "testing/", "training/", "weights.py")


def imported(tree, everywhere):
    """Absolute names of the modules that `tree` imports: everywhere, or only when it is itself imported."""
    found = set()
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                "." * node.level + (node.module or "") + ("" if node.module else alias.name) for alias in node.names
            }
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not everywhere:
            continue
        elif (
            isinstance(node, ast.If)
            and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            and not everywhere
        ):
            pending += node.orelse
        else:
            pending += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.stmt, ast.ExceptHandler))
            ]
    return found


def read(path, everywhere=True):
    return imported(ast.parse(path.read_text(encoding="utf-8")), everywhere)


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def own(path, everywhere=True):
    """Modules of ours that `path` imports, relative to the package: "types", "backbones.base"."""
    folders = path.relative_to(PACKAGE).parts[:-1]
    out = set()
    for name in read(path, everywhere):
        if name.startswith("."):
            level = len(name) - len(name.lstrip("."))
            base = folders[: len(folders) - level + 1]
            out.add(".".join([*base, *filter(None, name.lstrip(".").split("."))]))
        elif name.split(".")[0] == "come_ros":
            out.add(name.partition(".")[2])
    return out


def closure(name):
    """Files of ours that are read when the module `name` is imported, as far as they can be told from the source."""
    seen, pending = set(), [name]
    while pending:
        path = PACKAGE.joinpath(*pending.pop().split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py", path.parent / "__init__.py"):
            if file.is_file() and file not in seen:
                seen.add(file)
                pending += own(file, everywhere=False)
    return seen


def test_the_reader_sees_what_it_should():
    tree = ast.parse(
        "import a.b\nfrom .c import d\nfrom . import e\nif TYPE_CHECKING:\n    import f\nelse:\n    import g\n"
        "def h():\n    import i\nclass J:\n    import k\ntry:\n    import l\nexcept ImportError:\n    import m\n"
    )
    assert imported(tree, False) == {"a.b", ".c", ".e", "g", "k", "l", "m"}
    assert imported(tree, True) == {"a.b", ".c", ".e", "f", "g", "i", "k", "l", "m"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_ros_folder_imports_ros(path):
    if name_of(path).startswith("ros/"):
        return
    assert not {name.split(".")[0] for name in read(path)} & ROS
    # of our ros folder, others may import what works without ROS (or ask for the rest inside a function)
    for name in own(path, everywhere=False):
        if name.split(".")[0] == "ros":
            assert not {n.split(".")[0] for module in closure(name) for n in read(module, everywhere=False)} & ROS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_is_not_imported_with_the_package(path):
    light = ("__init__.py", "backbone.py", "fake.py")
    if name_of(path).startswith(HEAVY_PLACES) and path.name not in light:
        return
    assert not {name.split(".")[0] for name in read(path, everywhere=False)} & HEAVY


COMMANDS = [
    name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for path in MODULES
    if name_of(path).startswith("tools/") and "\ndef add_arguments(" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_help_of_a_command_needs_no_torch(command):
    assert len(COMMANDS) > 8
    assert not {n.split(".")[0] for file in closure(command) for n in read(file, everywhere=False)} & HEAVY


def test_importing_the_pipeline_imports_neither_torch_nor_ros():
    import subprocess

    code = "import come_ros.pipeline, come_ros.outputs.cloud, sys; print(*(m for m in ('torch', 'rclpy') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
