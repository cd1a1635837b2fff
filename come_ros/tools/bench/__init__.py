"""Measures the model's speed on this machine, dense and accelerated in turn on the same images; or everything around the model.

Each pass is split by part (encoder head, predictor, merge, encoder tail, frame, global, restore, heads); each row also gives the
share of patch tokens kept, the memory of a pass on top of weights and images (CPU: growth of the peak resident set of a separate
process; CUDA: torch.cuda.max_memory_allocated), the FLOPs, the speed of the trunk relative to a large matrix product on this
machine, and the difference of its prediction to the dense one. The trunk is all but the heads; an accelerator's own steps are
predictor, merge, restore. With three window lengths or more, the exponent of frames is fitted. Times are medians (p90) after a
warm-up, ratios are medians over passes that ran one after the other. Times are too high on a busy machine; the load is reported.

ACCELERATOR is a name, optionally with parameters (any of the configuration): come, come:ratio=0.75,group=2x2,mode=per_layer

examples:
  come_ros bench                                                  the bundled model, dense and with Co-Me
  come_ros bench --frames 8 32 128 --json bench.json --plot bench.png > bench.md
  come_ros bench --accelerator all --frames 2 4 8 16 32 64 128 --limit 30 --no-flops
                                                                  scaling with the window, and each accelerator's overhead
  come_ros bench --accelerator come:ratio=0.25 --accelerator come:ratio=0.75 --source my_bag
  come_ros bench --random-weights                                 of the sizes of the bundled model
  come_ros bench --random-weights --variant 1b --device cuda --size 504x504 --frames 8 32 128
  come_ros bench --weights vggt.safetensors --accelerator come:predictor=p.safetensors
  come_ros bench --stream --frames 8 16 --json stream.json        one new frame per window, with and without the cache
  come_ros bench --pipeline --repeats 200 --json cost.json > cost.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ...config import parameters
from ...errors import ConfigError, Stopped
from ...files import write_text
from ...interrupts import Interrupts
from ..ending import print_error
from ..report.figures import draw_or_warn
from . import report

STDOUT = Path("-")
MODELS = [c for p in parameters() if p.name == "backbone" for c in p.choices if c != "fake"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pipeline", action="store_true", help="measure everything around the model instead, stage by stage"
    )
    parser.add_argument("--stream", action="store_true", help="measure one new frame in a sliding window instead")
    parser.add_argument("--repeats", type=int, help="number of repetitions (default: 10, with --pipeline 100)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", nargs="?", const=STDOUT,
        help="print all figures as JSON instead of the tables; with FILE, write them there as well as the tables, row by row",
    )  # fmt: skip
    model = parser.add_argument_group("the model's benchmark")
    model.add_argument("--plot", type=Path, metavar="FILE", help="draw latency against frames into this PNG")
    model.add_argument(
        "--frames", type=int, nargs="+", metavar="N", help="frames per window (2 4 8 16; with --stream 4 8 16 32)"
    )
    model.add_argument("--size", metavar="WxH", help="images, px (default: the model's own width, 4:3)")
    model.add_argument(
        "--accelerator", action="append", metavar="ACCELERATOR",
        help="to compare with the dense model; may be repeated; all: every registered one; none: only the dense model (default: come)",
    )  # fmt: skip
    model.add_argument(
        "--backbone",
        default="vggt",
        metavar="NAME",
        help=f"model family: {', '.join(MODELS)}, or one of another package (default: %(default)s)",
    )
    model.add_argument(
        "--variant",
        metavar="NAME",
        help="with --random-weights: which size; vggt: 1b, tiny, tiny2, ... (default: that of the bundled model, or the smallest, tiny, if "
        "the family has one, else the published one)",
    )
    model.add_argument("--weights", default="", metavar="FILE", help="weights file (default: the bundled model)")
    model.add_argument(
        "--random-weights",
        action="store_true",
        help="random weights: times are valid, differences to the dense model are meaningless",
    )
    model.add_argument("--source", metavar="PATH", help="bag, folder or video to take images from (a rendered room)")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    model.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "bf16", "fp16", "fp32"],
        help="precision of the trunk (default %(default)s)",
    )
    for name in ("attention", "heads_precision", "optimize"):
        (p,) = (p for p in parameters() if p.name == name)
        model.add_argument(f"--{name.replace('_', '-')}", default=p.default, choices=p.choices, help=p.doc)
    model.add_argument("--threads", type=int, default=0, help="CPU threads (0: all cores)")
    model.add_argument(
        "--warm-up",
        type=int,
        default=2,
        metavar="N",
        help="warm-up passes, which are not measured (default %(default)s)",
    )
    model.add_argument(
        "--limit", type=float, default=0, metavar="SECONDS",
        help="stop repeating a window length after SECONDS (at least one pass; 0 = no limit)",
    )  # fmt: skip
    model.add_argument("--no-flops", action="store_true", help="do not count FLOPs, which costs a pass")
    model.add_argument(
        "--no-memory",
        action="store_true",
        help="skip the memory measurement (on a CPU it costs one extra process and pass)",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the tables; 128 + number if a signal ended it, with the rows that were complete.

    Raises ConfigError, CheckpointError, DatasetError, or OutputError if a file cannot be written.
    """
    if options.repeats is not None and options.repeats < 1:
        raise ConfigError(f"--repeats is {options.repeats}, but must be 1 or more")
    if options.pipeline and options.stream:
        raise ConfigError("--pipeline and --stream measure different things: give only one of them")
    from . import model, pipeline, stream

    if options.pipeline:
        rows, told = pipeline.measure(options.repeats or 100), pipeline.report
    else:
        rows, told = (
            (stream.measure(options), stream.report) if options.stream else (model.measure(options), report.report)
        )
    result: dict[str, Any] = {}
    with Interrupts() as stopped:
        try:
            with stopped.raising():
                for result in rows:
                    if options.json not in (None, STDOUT):
                        write_text(options.json, json.dumps(result, indent=2) + "\n")
        except Stopped as cancelled:
            rest = "what was complete follows" if result else "nothing was complete"
            print_error("bench", f"{cancelled}; {rest}")
    if result and options.plot and not (options.stream or options.pipeline):
        draw_or_warn(options.plot, lambda: report.draw(options.plot, result))
    if result:
        print(json.dumps(result, indent=2) if options.json == STDOUT else told(result))
    return 0 if stopped.number is None else 128 + stopped.number
