"""What is shipped agrees with itself: versions, files, commands, pinned packages and the pages. `make docs` writes their tables."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import come_ros
from come_ros.config import Config
from come_ros.config_text import load_config
from come_ros.errors import ConfigError
from come_ros.tools import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


PAGES = [
    "README.md",
    "config/README.md",
    "come_ros/accelerators/README.md",
    "come_ros/fleet/README.md",
    "come_ros/models/README.md",
    "come_ros/ros/README.md",
    "come_ros/tools/README.md",
    "test/benchmark/README.md",
]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """The arguments setup.py gives to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    given: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", given.update)
        runpy.run_path("setup.py")
    return given


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`come_ros ARGUMENTS...` in a process of its own."""
    command = [sys.executable, "-m", "come_ros.tools.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_all_versions_agree(metadata: dict[str, Any]) -> None:
    package = ET.parse(ROOT / "package.xml").getroot()
    changes = re.findall(r"^(\d+\.\d+\.\d+) \(\d", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert package.findtext("version") == metadata["version"] == changes[0] == come_ros.__version__
    assert package.findtext("name") == metadata["name"] == "come_ros"
    assert package.findtext("license") == metadata["license"] == "Apache-2.0"


def test_package_xml_is_valid() -> None:
    catkin_pkg = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg is not installed")
    warnings: list[str] = []
    package = catkin_pkg.parse_package(str(ROOT / "package.xml"), warnings=warnings)
    package.validate(warnings=warnings)
    assert not warnings
    assert package.get_build_type() == "ament_python"  # colcon takes an invalid file for a plain Python package


def test_everything_ros_looks_for_is_installed(metadata: dict[str, Any]) -> None:
    files = {folder: set(names) for folder, names in metadata["data_files"]}
    assert files["share/ament_index/resource_index/packages"] == {"resource/come_ros"}
    assert files["share/come_ros"] == {"package.xml"}
    assert files["share/come_ros/launch"] == {str(p.relative_to(ROOT)) for p in _files("launch")}
    assert files["share/come_ros/config"] == {str(p.relative_to(ROOT)) for p in _files("config")}
    assert all((ROOT / name).is_file() for names in files.values() for name in names)


def _files(folder: str) -> Iterator[Path]:
    return (p for p in (ROOT / folder).glob("*") if p.is_file() and not p.name.startswith("."))


def test_every_folder_of_code_is_a_package(metadata: dict[str, Any]) -> None:
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "come_ros").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} <= set(metadata["packages"])


def test_the_kernels_travel_with_the_package(metadata: dict[str, Any]) -> None:
    assert "come_ros.cuda" in metadata["packages"] and metadata["package_dir"]["come_ros.cuda"] == "cuda"
    sent = {p.name for pattern in metadata["package_data"]["come_ros.cuda"] for p in (ROOT / "cuda").glob(pattern)}
    assert sent == {p.name for p in _files("cuda")} >= {"common.cuh", "token_merge.cu", "token_restore.cu"}


def test_commands_lead_to_functions(metadata: dict[str, Any]) -> None:
    targets = dict(re.split(r"\s*=\s*", line) for line in metadata["entry_points"]["console_scripts"])
    assert targets == {"come_ros": "come_ros.tools.cli:main", "come_node": "come_ros.ros.main:main"}
    tools = ROOT / "come_ros" / "tools"  # a module each, or a package
    assert {p.stem for p in (*tools.glob("*.py"), *tools.glob("*/"))} >= {
        name.replace("-", "_") for name in cli.COMMANDS
    } - {"node"}


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")  # type: ignore[index]


def pinned(file: str) -> list[str]:
    """The lines of .ci/`file` and of the files it reads, as pip would."""
    lines: list[str] = []
    for line in (ROOT / ".ci" / file).read_text().splitlines():
        if line.startswith("-r "):
            lines += pinned(line.removeprefix("-r "))
        elif line[:1].isalnum():
            lines.append(line)
    return lines


@pytest.mark.parametrize("file", ["requirements-jazzy.txt", "requirements-kilted.txt"])
def test_every_package_asked_for_is_pinned_once(metadata: dict[str, Any], file: str) -> None:
    lines = pinned(file)
    assert all("==" in line for line in lines)
    keys = [(name_of(line), line.partition(";")[2]) for line in lines]
    assert len(set(keys)) == len(keys)
    extras = metadata["extras_require"]
    wanted = [*metadata["install_requires"], *(r for e in ("torch", "ros", "tools", "view", "test") for r in extras[e])]
    assert {name_of(r) for r in wanted} - {"torch"} <= {name_of(line) for line in lines}


def test_the_two_ros_are_not_mixed(metadata: dict[str, Any]) -> None:
    jazzy, kilted = (
        {name_of(line): line for line in pinned(file) if line.startswith("ros-")}
        for file in ("requirements-jazzy.txt", "requirements-kilted.txt")
    )
    asked_for = {r for r in metadata["extras_require"]["ros"] if r.startswith("ros-")}
    assert asked_for <= set(jazzy.values()) and {name_of(r) for r in asked_for} <= set(kilted)
    messages = {name for name, line in jazzy.items() if line.endswith("==5.3.6")}
    assert len(messages) >= 5 and {kilted[name].partition("==")[2] for name in messages} == {"5.5.1"}
    assert (kilted["ros-rclpy"], jazzy["ros-rclpy"]) == ("ros-rclpy[fastrtps]==9.1.2", "ros-rclpy[fastrtps]==7.1.6")


def dry_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What `make ARGUMENTS` would do, as on a fresh clone; also if these tests were started by make."""
    make = shutil.which("make") or pytest.skip("make is not installed")
    command = [make, "--dry-run", "--always-make", *arguments]
    environment = {"PATH": os.environ["PATH"]}  # not what this make hands on
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("ros", ["humble", "", "kilted jazzy"])
def test_make_names_the_ros_that_there_are(ros: str) -> None:
    done = dry_make("test", f"ROS={ros}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"ROS={ros} " in done.stderr and "kilted" in done.stderr and "jazzy" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "venv", "requirements"),
    [((), ".venv", "requirements-jazzy.txt"), (("ROS=kilted",), ".venv-kilted", "requirements-kilted.txt")],
)
def test_each_ros_has_its_own_environment(arguments: tuple[str, ...], venv: str, requirements: str) -> None:
    done = dry_make("test", *arguments)
    assert f" -r .ci/{requirements} " in done.stdout and done.stdout.strip().endswith(
        "--dist loadgroup --no-loadscope-reorder"
    )
    assert f"\n{venv}/bin/python -m pytest" in done.stdout


PYTHON = """#!/bin/sh
# stands in for Python and pip: makes environments that write down what is installed, and rclpy's mark
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*) venv=$(dirname "$(dirname "$0")"); echo "$*" >> "$venv/installed"
    version=$(echo "$*" | sed -n 's#.* -r \\([^ ]*\\).*#\\1#p' | xargs -r sed -n 's/^ros-rclpy.*==//p')
    test -z "$version" || mkdir -p "$venv/lib/python3/site-packages/ros_rclpy-$version.dist-info" ;;
esac
"""


def test_an_environment_of_another_ros_is_made_again(tmp_path: Path) -> None:
    make = shutil.which("make") or pytest.skip("make is not installed")
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    python, venv = tmp_path / "python", tmp_path / ".venv"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def made() -> str:
        done = subprocess.run(
            [make, "venv", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        return done.stdout

    assert "again" not in made() and made().count(".venv: ") == 0, "there is nothing to do the second time"
    (found,) = venv.glob("lib/*/site-packages/ros_rclpy-*")
    assert found.name == "ros_rclpy-7.1.6.dist-info"
    # as earlier releases left it: Kilted, and a stamp that does not say so
    found.rename(found.with_name("ros_rclpy-9.1.2.dist-info"))
    next(venv.glob(".come_ros_*")).rename(venv / ".come_ros_installed")
    (venv / "old").touch()
    assert "made for another ROS 2 than jazzy, so it is made again" in made()
    assert not (venv / "old").exists() and found.is_dir()
    # a change of what is installed does not throw it away
    (venv / "old").touch()
    with open(tmp_path / ".ci" / "requirements-common.txt", "a") as file:
        file.write("\n")
    os.utime(tmp_path / ".ci" / "requirements-common.txt", (2e9, 2e9))
    assert "again" not in made() and (venv / "old").exists()


def test_the_workflow_for_ros_containers_names_what_there_is(metadata: dict[str, Any]) -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".ci" / "ros.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["colcon"]
    assert [each["distro"] for each in job["strategy"]["matrix"]["include"]] == ["humble", "jazzy", "lyrical"]
    assert job["container"] == "ros:${{ matrix.distro }}"
    script = "\n".join(step.get("run", "") for step in job["steps"])
    for command in ("rosdep install ", "--system-site-packages", " build ", " test ", " test-result "):
        assert command in script
    launched = re.findall(r"ros2 launch come_ros (\S+)", script)
    assert launched and all((ROOT / "launch" / name).is_file() for name in launched)
    run = re.findall(r"ros2 run come_ros (\S+) (\S+)", script)
    commands = {line.split(" = ")[0] for line in metadata["entry_points"]["console_scripts"]}
    assert run and all(program in commands and command in cli.COMMANDS for program, command in run)
    assert set(re.findall(r"--packages-select (\S+)", script)) == {metadata["name"]}
    assert "HAS NOT BEEN RUN" in text and "`.ci/ros.yml`" in README.read_text(encoding="utf-8")
    wanted = {name_of(r) for r in [*metadata["extras_require"]["torch"], *metadata["extras_require"]["tools"]]}
    installed = {
        name_of(word) for line in re.findall(r"pip install (.*)", script) for word in line.split() if word[0].isalpha()
    }
    assert wanted - {"opencv-python-headless"} <= installed  # OpenCV is apt's


PARAMETER_FILES = sorted(p for p in (ROOT / "config").glob("*.yaml") if not p.name.startswith("nav2_"))  # of this node


@pytest.mark.parametrize("file", PARAMETER_FILES, ids=lambda p: p.name)
def test_every_parameters_file_loads(file: Path) -> None:
    load_config(str(file))


@pytest.mark.parametrize("file", [f for f in PARAMETER_FILES if f.name != "come.yaml"], ids=lambda p: p.name)
def test_other_parameters_files_hold_only_differences_each_with_its_reason(file: Path) -> None:
    default, ours = Config().to_flat(), load_config(str(file)).to_flat()
    changed = {name: value for name, value in ours.items() if value != default[name]}
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    values = [line for line in lines if not line.rstrip().endswith(":")]
    assert values and len(values) == len(changed), f"what equals the default? {changed}"
    assert all(re.search(r"\S  # .{10,}", line) for line in values), "each with its reason"


def test_there_are_presets_for_a_jetson_and_for_accuracy() -> None:
    assert {"come.yaml", "jetson.yaml", "accurate.yaml"} <= {file.name for file in PARAMETER_FILES}


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.xml")), ids=lambda p: p.name)
def test_every_profile_is_well_formed(file: Path) -> None:
    ET.parse(file)


@pytest.fixture(scope="module")
def docs() -> dict[str, Any]:
    """The program behind `make docs`."""
    return runpy.run_path(str(ROOT / ".ci" / "docs.py"))


@pytest.mark.slow
def test_tables_of_the_pages_are_those_of_the_code(docs: dict[str, Any]) -> None:
    for page in docs["PAGES"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        wanted = docs["with_tables"](page, text)
        if page == "test/benchmark/README.md":  # whether code is newer changes with the next commit
            text, wanted = (re.sub(r"code older|current", "", t) for t in (text, wanted))
        assert text == wanted, f"{page} is not current: run make docs"
    assert docs["COME_YAML"].read_text(encoding="utf-8") == docs["come_yaml"](), "run make docs"
    assert docs["COME_SCHEMA"].read_text(encoding="utf-8") == docs["come_schema"](), "run make docs"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", text):
        assert not target or (ROOT / page).parent.joinpath(target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert anchor in anchors, f"{target}#{anchor}"


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 170
    assert all(f"({page})" in text for page in PAGES[1:])


def test_every_dependency_has_its_reason_in_the_readme(metadata: dict[str, Any]) -> None:
    section = README.read_text(encoding="utf-8").partition("## Dependencies, and why")[2].lower()
    asked = {name_of(r) for r in metadata["install_requires"]} | {
        name_of(r) for extra in metadata["extras_require"].values() for r in extra
    }
    known = {"cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy", "opencv-python-headless": "opencv"}
    named = {known.get(n, "ros-*-msgs" if n.endswith("-msgs") or n == "ros-std-srvs" else n) for n in asked}
    assert not {n for n in named if n not in section and not n.startswith("types-")}


def test_the_robots_page_lists_every_output() -> None:
    from come_ros.outputs.topics import LATCHED, OUTPUTS

    rows = (ROOT / "come_ros" / "ros" / "README.md").read_text(encoding="utf-8").splitlines()
    wanted = {topic: (o.kind, f"reliable, depth {o.depth} ") for topic, o in OUTPUTS.items()}
    wanted |= {topic: (o.kind, "reliable, transient local, depth 1 ") for topic, o in LATCHED.items()}
    for topic, (kind, qos) in wanted.items():
        row = next((row for row in rows if row.startswith(f"| `~/{topic}` |")), "")
        assert kind.replace("/msg/", "/") in row and qos in row, topic


def test_help_lists_every_command() -> None:
    done = run_command("--help")
    assert done.returncode == 0
    assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name in cli.COMMANDS)


def test_help_needs_neither_torch_nor_ros() -> None:
    script = (
        "import sys; from come_ros.tools import cli; cli._parser(); print(*(m.partition('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "rclpy", "cv2", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - {"node"}))
def test_every_command_describes_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: come_ros {name}" in capsys.readouterr().out


def test_an_unknown_command_is_refused() -> None:
    done = run_command("bags")
    assert done.returncode == 2 and "invalid choice: 'bags'; did you mean 'bag'?" in done.stderr


class _Tool:
    """Stands in for a module of come_ros.tools."""

    __doc__ = "Do nothing.\n\nexamples:\n  come_ros doctor --calm\n"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--calm", action="store_true")

    def run(self, options: Any) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("window.size is 1, but must lie in 2 .. 64"), 1, "come_ros doctor: window.size is 1, but must"),
        (
            ModuleNotFoundError("No module named 'evo'", name="evo"),
            1,
            "come_ros doctor: needs the Python package 'evo'",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["wrong parameter", "missing package", "ctrl-c"],
)
def test_errors_of_the_user_are_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: _Tool(error))
    assert cli.main(["doctor", "--calm"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(said) and printed.count("\n") == bool(said)


@pytest.mark.parametrize(
    "error", [KeyError("ours"), ModuleNotFoundError("ours", name="come_ros.tools.doctor.checks")], ids=repr
)
def test_faults_of_ours_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: _Tool(error))
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_a_closed_pipe_is_no_error() -> None:
    command = f'"{sys.executable}" -u -m come_ros.tools.cli doctor --quick | head -n 1'
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.slow
def test_doctor_examines_this_machine() -> None:
    done = run_command("doctor", "--quick")
    assert not done.stderr
    levels = re.findall(r"^  (OK|WARN|FAIL) ", done.stdout, re.MULTILINE)
    assert len(levels) > 10
    assert done.returncode == int("FAIL" in levels)


@pytest.mark.parametrize(
    ("distro", "name", "file", "level"),
    [
        ("kilted", "FASTDDS", "/nowhere/profile.xml", "FAIL"),
        ("kilted", "FASTDDS", __file__, "OK"),
        ("kilted", "FASTRTPS", __file__, "OK"),
        ("jazzy", "FASTRTPS", "/nowhere/profile.xml", "FAIL"),
        ("jazzy", "FASTRTPS", __file__, "OK"),
        ("jazzy", "FASTDDS", __file__, "WARN"),
    ],
)
def test_doctor_looks_at_the_profile(
    distro: str, name: str, file: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from come_ros.ros.environment import PROFILE_VARIABLES
    from come_ros.tools.doctor import checks

    for variable in PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ROS_DISTRO", distro)
    monkeypatch.setenv(f"{name}_DEFAULT_PROFILES_FILE", file)
    (finding,) = checks.profile()
    assert finding.level == level and bool(finding.fix) == (level != "OK")


def test_doctor_reads_the_bundled_weights_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    import numpy as np
    from safetensors.numpy import save

    from come_ros.tools.doctor import checks

    monkeypatch.setattr(checks, "MODELS", tmp_path)
    assert [f.level for f in checks.weights()] == [checks.FAIL]  # none at all
    content = save({"a": np.zeros(100, np.float16)})
    (tmp_path / "model.safetensors").write_bytes(content)
    assert [f.level for f in checks.weights()] == [checks.OK]
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    assert [f.level for f in checks.weights()] == [checks.FAIL]
