"""Results with their origin: `write_result` writes one, and what made it into NAME.stamp.json; the index says which are stale.

  python test/benchmark/stamped.py                    list all results and what has changed since they were measured
  python test/benchmark/stamped.py run accuracy/eval_real -- come_ros eval FOLDER -o OUT
      run that command, then keep what it wrote into OUT (a new folder, made for it): metrics.* as eval_real.*, other files as eval_real_*;
      SHARED stands for the folder of recorded data
  python test/benchmark/stamped.py run speed/bench_tiny -- come_ros bench --json OUT/metrics.json --plot OUT/metrics.png
  python test/benchmark/stamped.py stamp accuracy/eval_real --command 'come_ros eval ...' [--weights vggt_tiny.safetensors ...]
      stamp files that lie in results/ already and were made just now, with the code and weights of this checkout
  python test/benchmark/stamped.py stale                list the commands of those that were measured with other weights than ship

A stamp holds the command, commit (and if files differed from it), date, machine, and sha256 of the weights files in come_ros/models that
the figures depend on; none for figures that do not (random weights, decoders, TF).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from come_ros.bundled import BUNDLED as NAME  # noqa: E402
from come_ros.errors import ComeRosError  # noqa: E402
from come_ros.files import whole_file, write_text  # noqa: E402

BENCHMARK = ROOT / "test" / "benchmark"
MODELS = ROOT / "come_ros" / "models"
AREAS = ("speed", "accuracy", "robustness")
TINY = (f"{NAME}.safetensors",)
"""the weights of figures of the bundled model, dense"""
TINY_COME = (*TINY, f"come_{NAME}.safetensors")
"""of the bundled model with Co-Me"""
BUNDLED = (*TINY_COME, f"pace_{NAME}.safetensors")
"""of the bundled model with all accelerators"""
SUFFIX = ".stamp.json"
PLACE, SHARED = "OUT", "SHARED"


@dataclass(frozen=True)
class Stamp:
    """What made a result. `weights`: file name -> sha256. `note`: what a reader must know of this stamp itself."""

    command: str
    commit: str
    date: str
    machine: str
    weights: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    changed: bool = False
    note: str = ""


def write_result(
    folder: Path,
    name: str,
    data: Any = None,
    text: str = "",
    draw: Callable[[Path], None] | None = None,
    *,
    weights: Iterable[str] | Mapping[str, str] = (),
    command: str = "",
) -> None:
    """Write NAME.json (`data`, or JSON as a str), NAME.md (`text`) and NAME.png (by `draw`) into `folder`, each if it is given, and
    NAME.stamp.json.

    weights: names of files in come_ros/models that the figures depend on; for tables of other results `weights_of` those. command: what
    was run, if not this process's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    if data is not None:
        content = data if isinstance(data, str) else json.dumps(data, indent=1) + "\n"
        write_text(folder / f"{name}.json", text_in_any_place(content))
        files.append(f"{name}.json")
    if text:
        write_text(folder / f"{name}.md", text_in_any_place(text))
        files.append(f"{name}.md")
    if draw is not None:
        draw(folder / f"{name}.png")
        files += [path.name for path in [folder / f"{name}.png"] if path.exists()]
    write_stamp(folder, name, files, weights, command or own_command())


def write_stamp(
    folder: Path, name: str, files: Sequence[str], weights: Iterable[str] | Mapping[str, str], command: str
) -> None:
    """NAME.stamp.json for `files`, which were made just now by `command` with this checkout and the weights files so named."""
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = bool(git("status", "--porcelain", "--", "come_ros", "cuda", "test/benchmark/*.py"))
    except (OSError, subprocess.CalledProcessError):
        commit, changed = "unknown", True
    stamp = Stamp(
        command,
        commit,
        datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        this_machine(),
        dict(weights) if isinstance(weights, Mapping) else {each: sha256(MODELS / each) for each in weights},
        tuple(files),
        changed,
    )
    write_text(folder / f"{name}{SUFFIX}", json.dumps(asdict(stamp), indent=1) + "\n")


def own_command() -> str:
    """How this process was started, with a path from the top of the repository."""
    script = Path(sys.argv[0]).resolve()
    shown = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", shown, *(as_in_any_place(word) for word in sys.argv[1:])])


def text_in_any_place(text: str) -> str:
    """`text` without this machine's folders: recorded data lies in SHARED, the checkout is `.`."""
    for folder, name in _folders():
        text = text.replace(str(folder), name)
    return text


def _folders() -> tuple[tuple[Path, str], ...]:
    """Folders of this machine, and what they are called in results."""
    return (shared(), SHARED), (ROOT, ".")


def as_in_any_place(word: str) -> str:
    """A word of a command without this machine's folders: as `text_in_any_place`; other absolute paths keep their last two parts."""
    path = Path(word)
    for folder, name in _folders():
        if len(path.parts) > 1 and path.resolve().is_relative_to(folder):
            return str(Path(name, path.resolve().relative_to(folder)))
    return "/".join(path.parts[-2:]) if path.is_absolute() else word


def shared() -> Path:
    """The folder of recorded data, `SHARED` in commands: $COME_ROS_SHARED, or `shared` next to the checkout."""
    return Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared").resolve()


def this_machine() -> str:
    """Processor, cores, GPU if torch is loaded and sees one, versions, and how busy the machine was."""
    words = [f"{processor()}, {os.cpu_count()} cores"]
    torch = sys.modules.get("torch")
    if torch is not None:
        if torch.cuda.is_available():
            words.append(torch.cuda.get_device_name())
        words.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    words.append(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    return ", ".join(words)


def processor() -> str:
    """The CPU's name where the system tells, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {named[0]}" if named else platform.machine()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# What has changed since


@dataclass(frozen=True)
class Result:
    """A stamped result: where it is, its stamp, and the weights files that are no longer those it was measured with."""

    area: str
    name: str
    stamp: Stamp

    @property
    def older_weights(self) -> tuple[str, ...]:
        return tuple(f for f, sha in self.stamp.weights.items() if sha != shipped().get(f))

    @property
    def newer_code(self) -> int | None:
        """How many commits since have touched the package or the script; None if git cannot tell."""
        script = next((w for w in self.stamp.command.split() if w.startswith("test/")), "")
        try:
            return int(
                git("rev-list", "--count", f"{self.stamp.commit}..HEAD", "--", "come_ros", "cuda", *script.split())
            )
        except (OSError, subprocess.CalledProcessError):
            return None

    def state(self, counted: bool = False) -> str:
        """What is older than the checkout, weights or code; counted: by how many commits."""
        commits = self.newer_code
        code = "current" if commits == 0 else "code older" + (f" ({commits} commits)" if counted and commits else "")
        return f"**stale: other {' and '.join(self.older_weights)}**" if self.older_weights else code


@functools.cache
def shipped() -> dict[str, str]:
    """Name -> sha256 of the weights files that are shipped."""
    return {path.name: sha256(path) for path in MODELS.glob("*.safetensors")}


def results(benchmark: Path = BENCHMARK) -> Iterator[Result]:
    """All that are stamped, by area and name."""
    for area in AREAS:
        for path in sorted((benchmark / area / "results").glob(f"*{SUFFIX}")):
            found = json.loads(path.read_text(encoding="utf-8"))
            found["files"] = tuple(found["files"])
            yield Result(area, path.name.removesuffix(SUFFIX), Stamp(**found))


def weights_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The weights that those results in `folder` were measured with."""
    found: dict[str, str] = {}
    for name in names:
        found.update(json.loads((folder / f"{name}{SUFFIX}").read_text(encoding="utf-8"))["weights"])
    return found


def unstamped(benchmark: Path = BENCHMARK) -> list[str]:
    """Files among the results that no stamp names."""
    known = {f"{r.area}/results/{f}" for r in results(benchmark) for f in r.stamp.files}
    files = (p for area in AREAS for p in (benchmark / area / "results").glob("*") if not p.name.endswith(SUFFIX))
    return sorted(name for p in files if (name := str(p.relative_to(benchmark))) not in known)


def index(counted: bool = False) -> str:
    """The table of all results, in Markdown, with links as from test/benchmark/. counted: how many commits are newer."""
    rows = ["| result | made by | measured at | since then |", "|---|---|---|---|"]
    for r in results():
        first = next((f for f in r.stamp.files if f.endswith(".md")), r.stamp.files[0])
        files = ", ".join(f.rpartition(".")[2] for f in r.stamp.files)
        changed = " with changes" if r.stamp.changed else ""
        rows.append(
            f"| {r.area}: [{r.name}]({r.area}/results/{first}) ({files}) | `{r.stamp.command}` "
            f"| {r.stamp.date[:10]}, {r.stamp.commit}{changed}{'; ' + r.stamp.note if r.stamp.note else ''} | {r.state(counted)} |"
        )
    return "\n".join(rows) + "\n"


def run(name: str, words: list[str], weights: Iterable[str]) -> None:
    """Run a command that writes into the folder PLACE, and keep its files as the result `name` (AREA/NAME). Raises ComeRosError."""
    folder, stem = place(name)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        own = [re.sub(rf"^{PLACE}\b", str(out), re.sub(rf"^{SHARED}\b", str(shared()), word)) for word in words]
        if own[0] == "come_ros":
            own[:1] = [sys.executable, "-m", "come_ros.tools.cli"]
        done = subprocess.run(own, cwd=ROOT, check=False)
        if done.returncode:
            raise ComeRosError(f"exit code {done.returncode} of {shlex.join(words)}: nothing is kept")
        files = []
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            rest = path.name.removeprefix("metrics") if path.stem == "metrics" else f"_{path.name}"
            content = path.read_bytes()
            if path.suffix in (".json", ".md", ".txt", ".csv"):
                content = text_in_any_place(content.decode()).encode()
            with whole_file(folder / f"{stem}{rest}") as stream:
                stream.write(content)
            files.append(f"{stem}{rest}")
        if not files:
            raise ComeRosError(f"{shlex.join(words)} wrote nothing into {PLACE}: name it {PLACE} in the command")
    listed = list(weights)
    chosen = [] if listed == list(BUNDLED) else ["--weights", *listed]
    command = ["python", "test/benchmark/stamped.py", "run", name, *chosen, "--", *map(as_in_any_place, words)]
    write_stamp(folder, stem, files, listed, shlex.join(command))


def place(name: str) -> tuple[Path, str]:
    """Folder and stem of AREA/NAME. Raises ComeRosError."""
    area, _, stem = name.partition("/")
    if area not in AREAS or not stem:
        raise ComeRosError(f"{name!r} must be AREA/NAME with an area of {', '.join(AREAS)}, such as accuracy/eval_real")
    return BENCHMARK / area / "results", stem


def stale() -> str:
    """One line for each command of results of other weights than the shipped ones, with what it makes."""
    commands: dict[str, list[str]] = {}
    for r in results():
        if r.older_weights:
            commands.setdefault(r.stamp.command, []).append(f"{r.area}/{r.name}")
    return "".join(f"{command}  # {', '.join(made)}\n" for command, made in commands.items())


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="do")
    commands.add_parser("stale", help="commands of results of other weights than the shipped ones")
    for each, text in (("run", "run a command and keep what it writes"), ("stamp", "stamp files that are there")):
        sub = commands.add_parser(each, help=text)
        sub.add_argument("name", metavar="AREA/NAME")
        sub.add_argument(
            "--weights",
            nargs="*",
            default=list(BUNDLED),
            help="files of come_ros/models that the figures depend on (default: all); give none for figures of no weights",
        )
        if each == "run":
            sub.add_argument("command", nargs="+", help=f"after --; it writes into {PLACE}")
        else:
            sub.add_argument("--command", required=True)
    given = parser.parse_args(words)
    try:
        if given.do == "run":
            run(given.name, given.command, given.weights)
        elif given.do == "stamp":
            folder, stem = place(given.name)
            files = [p.name for p in sorted(folder.glob(f"{stem}.*")) if not p.name.endswith(SUFFIX)]
            if not files:
                raise ComeRosError(f"there is no {folder / stem}.*: write the result first")
            write_stamp(folder, stem, files, given.weights, given.command)
    except ComeRosError as error:
        print(f"stamped.py: {error}", file=sys.stderr)
        return 1
    if given.do == "stale":
        print(stale(), end="")
        return 0
    print(index(counted=True), end="")
    for path in unstamped():
        print(f"without a stamp: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
