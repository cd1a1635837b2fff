"""What belongs to new weights of the bundled model: makes it, then puts it all in place. See come_ros/training/README.md.

  python test/benchmark/ship.py tiny2.safetensors --name vggt_tiny2               Co-Me's predictor, layer plan, PaceVGGT's networks
  python test/benchmark/ship.py tiny2.safetensors --name vggt_tiny2 --quick       the same in a few steps, to see that all of it runs
  python test/benchmark/ship.py tiny2.safetensors --name vggt_tiny2 --install     into come_ros/models, in place of the files that are there

Files are made in -o, which may hold some of them: a step whose file is there is not run again. --install checks that all fit the weights.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmark.stamped import ROOT

from come_ros import bundled
from come_ros.accelerators.confidence import load_predictor
from come_ros.accelerators.good_token_hunting import read_layer_plan
from come_ros.accelerators.pace_networks import load_networks
from come_ros.backbones.checkpoint import load_vggt
from come_ros.companions import LAYER_PLAN, NETWORKS, PREDICTOR, said_by
from come_ros.errors import CheckpointError, ComeRosError
from come_ros.files import whole_file, write_text
from come_ros.weights import fingerprint_of_tensors

LARGEST_MIB = 24
KINDS = {"come": PREDICTOR, "layer plan": LAYER_PLAN, "pace": NETWORKS}


def files_of(folder: Path, name: str) -> dict[str, Path]:
    """What ships of a model, by what it is for."""
    weights = folder / f"{name}.safetensors"
    return {"weights": weights, **{what: Path(kind.next_to(str(weights))) for what, kind in KINDS.items()}}


def commands(weights: Path, out: Path, quick: bool) -> dict[str, tuple[list[str], Path]]:
    """What is made -> the words behind `come_ros`, and the file that they write."""
    whose = ["--weights", str(weights)]
    steps = {"come": "10", "pace": "4"} if quick else {"come": "600", "pace": "150"}
    windows = ["--windows", "2"] if quick else []
    taught, networks = out / "distill", out / "pace"
    resumed = {folder: ["--resume"] if (folder / "state.pt").exists() else [] for folder in (taught, networks)}
    again = ["--refine-steps", steps["pace"], "--seed", "1", "-o", str(networks), *resumed[networks]]
    return {
        "come": (
            ["distill", *whose, "--steps", steps["come"], "--batch", "16", "-o", str(taught), *resumed[taught]],
            taught / "predictor.safetensors",
        ),
        "layer plan": (["calibrate", *whose, *windows], Path(LAYER_PLAN.next_to(str(weights)))),
        "pace": (["train-pace", *whose, "--steps", steps["pace"], *again], networks / "pace.safetensors"),
    }


def make(source: Path, name: str, out: Path, quick: bool) -> None:
    """Runs what has not been run. Raises ComeRosError."""
    out.mkdir(parents=True, exist_ok=True)
    files = files_of(out, name)
    if not files["weights"].exists():
        shutil.copyfile(source, files["weights"])
    elif fingerprint_of_tensors(str(source)) != fingerprint_of_tensors(str(files["weights"])):
        raise ComeRosError(f"{files['weights']} is another model than {source}: name another folder with -o")
    for what, (words, made) in commands(files["weights"], out, quick).items():
        if not files[what].exists():
            print("come_ros", *words, flush=True)
            done = subprocess.run([sys.executable, "-m", "come_ros.tools.cli", *words], cwd=ROOT, check=False)
            if done.returncode:
                raise ComeRosError(f"exit code {done.returncode} of come_ros {' '.join(words)}")
            if made != files[what]:
                shutil.copyfile(made, files[what])


def check(files: dict[str, Path]) -> None:
    """Raises CheckpointError if a file is missing, or was made for other weights."""
    for what, path in files.items():
        if not path.is_file():
            raise CheckpointError(f"{path} ({what}) is missing: run this without --install first")
    weights = files["weights"]
    if weights.stat().st_size > LARGEST_MIB * 2**20:
        raise CheckpointError(f"{weights} is {weights.stat().st_size / 2**20:.1f} MiB, more than {LARGEST_MIB}")
    model = load_vggt(str(weights))
    load_predictor(str(files["come"]), model.shape)
    load_networks(str(files["pace"]), model.shape)
    layers = sum(part == "global" for part in model.shape.trunk)
    read_layer_plan(str(weights), layers)
    for what, kind in KINDS.items():
        if told := kind.misfit(str(files[what]), said_by(str(files[what])), str(weights)):
            raise CheckpointError(f"{told}; here: delete it and run this without --install")


def install(files: dict[str, Path], name: str, models: Path, setting: Path) -> None:
    """Copies all into `models`, deletes what was there under another name, and names the new one in the module `setting`.

    Raises CheckpointError, before anything is changed.
    """
    check(files)
    text = setting.read_text(encoding="utf-8")
    (old,) = re.findall(r'^BUNDLED = "(\w+)"$', text, re.MULTILINE)
    for what, path in files_of(models, name).items():
        with whole_file(path) as stream:
            stream.write(files[what].read_bytes())
    if old != name:
        for path in files_of(models, old).values():
            path.unlink(missing_ok=True)
        write_text(setting, text.replace(f'BUNDLED = "{old}"', f'BUNDLED = "{name}"'))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, metavar="FILE", help="as come_ros train --export writes it")
    parser.add_argument("--name", default=bundled.BUNDLED, help="of its files in come_ros/models (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few steps: a rehearsal")
    parser.add_argument("--install", action="store_true", help="put what is there in place")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/ship"), help="(default %(default)s)")
    args = parser.parse_args(words)
    try:
        if args.install:
            install(files_of(args.out, args.name), args.name, Path(bundled.MODEL_FOLDER), Path(bundled.__file__))
            print(
                "then: python test/benchmark/stamped.py stale, the model card, and the pages; see come_ros/training/README.md"
            )
        else:
            make(args.weights.resolve(), args.name, args.out.resolve(), args.quick)
            print(f"all is in {args.out}; then the same with --install")
    except ComeRosError as error:
        print(f"ship.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
