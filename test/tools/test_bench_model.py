"""The model's benchmark: every part is told apart, FLOPs are those of a count by hand, the command writes what it measured."""

from __future__ import annotations

import dataclasses
import json
import mmap
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import TINY, WIDTH, CountedGraphs, bundled_size, graphed, kept_by_come, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from come_ros.accelerators import CoMe, GoodTokenHunting, NoAccelerator
from come_ros.accelerators.combined import combine
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.accelerators.good_token_hunting import LayerPlan
from come_ros.backbones.checkpoint import bundled_weights, load_model, variants
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.backbones.vggt import VGGT, VGGTSizes
from come_ros.bundled import VARIANT
from come_ros.errors import ComeRosError
from come_ros.tools import cli, resident
from come_ros.tools.bench import memory, model
from come_ros.tools.bench.split import PARTS, WHOLE, Split, _run, count_flops, matmul_rate, timed
from come_ros.tools.bench.subject import wish_of

C, DEPTH, FRAMES, GRID = 48, 3, 3, (6, 7)
SIZES = VGGTSizes(
    image_side=98, native_side=98, dim=C, encoder_depth=3, encoder_heads=3, depth=DEPTH, heads=3,
    taps=(0, 1, 1, 2), camera_depth=1, camera_heads=3, features=16, channels=(16, 16, 16, 16),
)  # fmt: skip
DIM = 8  # of the predictor


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    network = VGGT(SIZES)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return TorchBackbone("vggt", network, NoAccelerator(), device="cpu")


@pytest.fixture(scope="module")
def x(backbone):
    return backbone.upload(np.random.default_rng(0).integers(0, 256, (FRAMES, 84, 98, 3), np.uint8))


def come(**more):
    torch.manual_seed(1)
    return CoMe(ConfidencePredictor(C, DIM).eval(), 1, group=(2, 2), ratio=0.5, **more)


def test_a_split_gives_every_step_to_its_part():
    clock = iter(range(100))
    split = Split(lambda: next(clock), lambda a, b: b - a, plan_block=0)  # each reading is one later than the last
    split.check()
    split.running("encoder", 0)
    with split.inside("merge"), split.inside("predictor"):
        pass
    split.check()
    split.running("encoder", 1)
    split.check()
    split.running("frame", 0)
    split.check()
    split.running("global", 0)
    with split.inside("restore"):
        pass
    split.check()  # no block is named: the heads
    split.check()
    split.finish()
    assert split.parts() == {
        # embedding, block 0 before and after the plan
        "encoder head": 3, "predictor": 1, "merge": 2, "encoder tail": 1, "frame": 1, "global": 2, "restore": 1, "heads": 2,
    }  # fmt: skip


def blocks(tokens, reached, count=1):
    """FLOPs of `count` transformer blocks by hand: tokens in all; how many keys each of them reads."""
    return count * (2 * tokens * C * 3 * C + 4 * tokens * reached * C + 2 * tokens * C * C + 2 * 2 * tokens * C * 4 * C)


def expected(patches):
    """By part, but for the heads; `patches` are left of each frame from the plan on."""
    whole, left = GRID[0] * GRID[1] + 5, patches + 5
    out = dict.fromkeys(PARTS, 0)
    out["encoder head"] = 2 * FRAMES * (whole - 5) * C * 3 * 14 * 14 + blocks(FRAMES * whole, whole, 2)
    out["encoder tail"] = blocks(FRAMES * left, left)
    out["frame"] = blocks(FRAMES * left, left, DEPTH)
    out["global"] = blocks(FRAMES * left, FRAMES * left, DEPTH)
    return out


def test_flops_are_those_counted_by_hand(backbone, x):
    dense = count_flops(backbone, x, 1)
    assert dense["heads"] > 0 and dense == {**expected(42), "heads": dense["heads"]}

    # nine whole groups of four in 6 x 7 patches, four of them merged: 42 - 4 * 3 patches are left
    merged = count_flops(backbone.accelerated(come()), x, 1)
    n = FRAMES * 42
    predictor = (
        2 * n * C * DIM + 2 * n * DIM * 3 * DIM + 4 * n * n * DIM + 2 * n * DIM * DIM + 2 * 2 * n * DIM * 2 * DIM
    )
    predictor += 2 * n * 9 * DIM * DIM + 2 * n * 9 * DIM
    assert merged == {**expected(30), "predictor": predictor, "heads": dense["heads"]}


@pytest.mark.parametrize("mode", ["none", "fused", "per_layer"])
def test_flops_of_all_parts_are_those_of_torch(backbone, x, mode):
    """Torch's own counter does not know the CPU's flash attention, so it is given attention as matrix products."""
    one = backbone if mode == "none" else backbone.accelerated(come(mode=mode))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        one.run(x)
    assert sum(count_flops(one, x, 1).values()) == counter.get_total_flops()


def test_times_of_all_parts_make_up_the_pass(backbone, x):
    for accelerator, idle in ((NoAccelerator(), {"predictor", "merge", "restore"}), (come(), set())):
        one = backbone.accelerated(accelerator)
        plain, _ = one.run(x)
        shares = []
        for _ in range(10):  # on a busy machine other processes may run between our clock and that of the split
            begun = time.perf_counter()
            parts, out, trunk = timed(one, x, 1)
            shares.append(sum(parts.values()) / (1e3 * (time.perf_counter() - begun)))
            assert {part for part, took in parts.items() if took == 0} == idle and min(parts.values()) >= 0
            if shares[-1] > 0.7:
                break
        assert 0.7 < shares[-1] <= 1, shares
        assert all(torch.equal(plain[k], out[k]) for k in plain)  # being watched changes no bit
        assert one.accelerator.kept_ratio(trunk.plan) == (1 if idle else pytest.approx(30 / 42))


@pytest.mark.parametrize("kind", sorted(TINY))
def test_parts_are_told_apart_in_every_backbone_and_of_accelerators_together(kind):
    one = TorchBackbone(kind, tiny(kind), NoAccelerator(), device="cpu")
    x = torch.rand(1, 4, 3, 56, 70)
    torch.manual_seed(1)
    both = combine([CoMe(ConfidencePredictor(C, DIM).eval(), 0, group=(2, 2)), GoodTokenHunting(LayerPlan(1, 2))])
    for accelerator, idle in ((NoAccelerator(), {"predictor", "merge", "restore"}), (both, set())):
        watched = one.accelerated(accelerator)
        assert {part for part, took in timed(watched, x, 0)[0].items() if took == 0} == idle
        flops = count_flops(watched, x, 0)
        assert {part for part, n in flops.items() if n == 0} <= {"predictor", "merge", "restore"}
        assert (flops["predictor"] == 0) == bool(idle)


def test_the_rate_of_matrix_products_is_a_speed():
    small, large = (matmul_rate(torch.device("cpu"), torch.float32, side, 3) for side in (8, 256))
    assert 1e6 < small < large < 1e14


def test_memory_that_was_given_back_is_still_the_peak():
    before = memory._reset_peak()
    with mmap.mmap(-1, 40_000_000) as held:  # malloc may keep what is freed
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    after = resident.now()
    assert resident.peak() - before == pytest.approx(40e6, rel=0.1) and after - before < 10e6
    again = memory._reset_peak()
    assert resident.peak() - again < 10e6


def test_the_peak_is_of_this_process_not_of_the_one_that_started_it():
    held = bytearray(200_000_000)
    held[:: mmap.PAGESIZE] = b"x" * len(held[:: mmap.PAGESIZE])
    code = "from come_ros.tools import resident; print(resident.peak())"
    small = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 1e6 < small < 100e6 < 200e6 < resident.peak()


def test_ratios_are_of_passes_that_ran_in_turn():
    def one(trunk):
        return {**dict.fromkeys(PARTS, 0.0), "frame": trunk, "heads": 1.0}

    dense = [one(ms) for ms in (10.0, 100.0, 1000.0)]  # the machine grows slower and slower
    out = model._summary([one(ms) for ms in (5.0, 50.0, 900.0)], dense)
    assert out["trunk_ratio"] == 0.5 and out["total_ratio"] == pytest.approx(6 / 11)
    assert out["trunk_ms"] == {"median": 50.0, "p90": pytest.approx(730)} and out["parts_ms"]["heads"] == 1.0


def test_what_does_not_fit_is_told_in_its_row_only(backbone, x, monkeypatch):
    from tqdm import tqdm

    def too_much(one, *args):
        if one.accelerator.name == "none":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB\nmore")
        return timed(one, *args)

    monkeypatch.setattr(model, "timed", too_much)
    images = np.zeros((2, 84, 98, 3), np.uint8)
    models = {"none": backbone, "come": backbone.accelerated(come())}
    options = SimpleNamespace(no_flops=False, limit=0)
    rows = model._rows(models, images, 0, 1, options, 1e9, False, tqdm(disable=True))
    assert rows["none"] == {"error": "out of memory: CUDA out of memory. Tried to allocate 1 PiB"}
    assert rows["come"]["trunk_ratio"] is None and rows["come"]["difference"] is None
    assert rows["come"]["trunk_ms"]["median"] > 0


@pytest.mark.slow
def test_the_command_measures_every_row_and_writes_it(tmp_path, capsys):
    file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    more = "come:ratio=0.75,group=2x2,mode=per_layer"
    words = [
        "--frames",
        "1",
        "3",
        "--repeats",
        "2",
        "--warm-up",
        "0",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--no-memory",
    ]
    words += ["--accelerator", "come", "--accelerator", more, "--json", str(file), "--plot", str(plot)]
    assert cli.main(["bench", *words]) == 0
    told, result = capsys.readouterr().out, json.loads(file.read_text())
    rows = result["rows"]
    assert [(r["frames"], r["accelerator"]) for r in rows] == [(n, a) for n in (1, 3) for a in ("none", "come", more)]
    width, height = result["image"]
    assert plot.read_bytes()[:4] == b"\x89PNG" and not result["random_weights"]
    assert (width, height) == bundled_size(4, 3)
    for row in rows:
        # a wrong unit is off by a thousand; load that comes or goes between the two measurements only by the number of processes
        assert list(row["parts_ms"]) == list(PARTS) and not row["error"] and 0 < row["share_of_matmul"] < 30
        assert (
            row["trunk_ms"]["median"] <= row["trunk_ms"]["p90"]
            and row["trunk_ms"]["median"] < row["total_ms"]["median"]
        )
        assert f"| {row['frames']} | {row['accelerator']} | {row['kept_ratio']:.0%} |" in told
    dense, ours, short = rows[3:]
    assert dense["trunk_ratio"] == 1 and dense["difference"] is None and ours["difference"]["depth_abs_rel"] > 0
    assert dense["kept_ratio"] == 1
    assert ours["kept_ratio"] == pytest.approx(kept_by_come(width, height, 3, 0.5))
    assert short["kept_ratio"] == pytest.approx(kept_by_come(width, height, 2, 0.75))
    assert (
        ours["gflop_trunk"] < dense["gflop_trunk"] and ours["parts_ms"]["predictor"] > 0 == dense["parts_ms"]["merge"]
    )


@pytest.mark.slow
def test_random_weights_are_said_to_be_random(tmp_path, capsys):
    words = ["--random-weights", "--frames", "2", "--repeats", "1", "--warm-up", "0", "--no-memory"]
    file = tmp_path / "b.json"
    assert cli.main(["bench", *words, "--device", "cpu", "--threads", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    dense, ours = result["rows"]
    assert tuple(result["image"]) == bundled_size(4, 3) and result["weights"] == f"random {VARIANT}"
    assert "Random weights" in capsys.readouterr().out and ours["difference"] is None and ours["kept_ratio"] < 1
    assert dense["kept_ratio"] == 1


@pytest.mark.parametrize("backbone", ["vggt", "lingbot"])
def test_random_weights_have_the_sizes_of_the_bundled_model_unless_others_are_named(backbone):
    options = SimpleNamespace(backbone=backbone, weights="", random_weights=True, variant=None)
    wish = wish_of(options)
    sizes, ours = variants(backbone)[wish.random], load_model(backbone, bundled_weights(backbone)).sizes
    # a few numbers of the confidence, and a head that no pass of the pipeline runs
    own = {name: getattr(ours, name) for name in ("by_place", "points") if hasattr(ours, name)}
    assert dataclasses.replace(sizes, **own) == ours
    assert wish_of(SimpleNamespace(**{**vars(options), "variant": "tiny"})).random == "tiny"


@pytest.mark.parametrize(("backbone", "wanted"), [("mapanything", "tiny"), ("pi3", "pi3"), ("da3", "base")])
def test_random_weights_of_other_families_are_of_their_small_size_or_the_published_one(backbone, wanted):
    options = SimpleNamespace(backbone=backbone, weights="", random_weights=True, variant=None)
    assert wish_of(options).random == wanted


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((8, 112, 112, 3), np.uint8))
    took = memory.added_by_passes({"device": "cpu", "threads": 1}, "come", tmp_path / "images.npy", [8, 1])
    assert list(took) == [1, 8] and 3 < took[1]["added_mb"] < took[8]["added_mb"] < 300 < took[8]["peak_mb"]
    with pytest.raises(ComeRosError, match="magic"):
        memory.added_by_passes({"device": "cpu"}, "magic", tmp_path / "images.npy", [8])


def test_the_exponent_is_that_of_the_times():
    def row(frames, trunk, error=""):
        return {"accelerator": "a", "frames": frames, "error": error,
                "trunk_ms": {"median": trunk}, "total_ms": {"median": 3 * frames}}  # fmt: skip

    rows = [row(n, 5 * n if n < 8 else 5 * n**2 / 8) for n in (1, 2, 4, 8, 16, 32)]  # linear, then as the square
    fit = model.scaling([*rows, row(64, 0, "out of memory")])["a"]
    assert fit["trunk_long"] == pytest.approx(2) and 1 < fit["trunk"] < 2
    assert (fit["total"], fit["total_long"]) == pytest.approx((1, 1))
    assert model.scaling(rows[:1])["a"] == dict.fromkeys(("trunk", "trunk_long", "total", "total_long"))


@pytest.mark.slow
def test_every_accelerator_is_timed_next_to_the_dense_model(tmp_path, capsys):
    from come_ros.accelerators import COMBINATIONS, registered

    file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    words = [
        "--accelerator",
        "all",
        "--frames",
        "1",
        "2",
        "3",
        "--limit",
        "0.001",
        "--no-flops",
        "--size",
        "112x112",
        "--no-memory",
    ]
    words += ["--device", "cpu", "--threads", "1", "--json", str(file), "--plot", str(plot)]
    assert cli.main(["bench", *words]) == 0
    result, told = json.loads(file.read_text()), capsys.readouterr().out
    there = {row["accelerator"] for row in result["rows"]}
    assert there | set(result["left_out"]) == {*registered(), *COMBINATIONS} and there >= {"come", "tome", "fast"}
    for row in result["rows"]:
        own = row["own"]
        assert row["passes"] == 1, "the limit was over: one pass, no more"
        assert own["of_pass"] == pytest.approx(own["ms"] / row["total_ms"]["median"])
        assert (own["of_pass"] == 0) == (row["accelerator"] == "none") and own["of_pass"] < 1 and "gflop" not in row
    assert (
        set(result["scaling"]) == there
        and "| exponent |" in told
        and all(f"| {name} | " in told for name in there - {"none"})
    )
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "100x84"], "both multiples of 1"),
        (["--size", "big"], "'big'"),
        (["--frames", "0"], "--frames is [0]"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--limit", "-1"], "--limit is -1"),
        (["--accelerator", "come:ratio=2"], "accelerator.ratio is 2.0"),
        (["--accelerator", "come:ratoi=0.5"], "has no parameter 'ratoi'"),
        (["--accelerator", "magic"], "accelerator.name is 'magic'"),
        (["--variant", "1b"], "--random-weights"),
        (
            ["--variant", "1b", "--weights", "", "--random-weights", "--precision", "bf16", "--device", "cpu"],
            "fp32 only",
        ),
        (["--weights", "there_is_none.pt"], "there_is_none.pt does not exist"),
        (["--source", "there_is_none"], "there_is_none"),
    ],
)
def test_a_wrong_wish_is_one_clear_line(words, told, capsys):
    assert cli.main(["bench", "--no-memory", *words]) == 1
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_parts_make_up_the_pass(tmp_path):
    file = tmp_path / "b.json"
    assert cli.main(["bench", "--frames", "2", "--repeats", "3", "--device", "cuda", "--json", str(file)]) == 0
    dense, ours = json.loads(file.read_text())["rows"]
    for row in (dense, ours):
        assert row["memory"]["added_mb"] > 0 and row["share_of_matmul"] < 1
        assert sum(row["parts_ms"].values()) == pytest.approx(row["total_ms"]["median"], rel=0.2)
    assert ours["parts_ms"]["predictor"] > 0 and ours["parts_ms"]["restore"] > 0


@pytest.mark.slow
def test_a_new_frame_in_a_sliding_window_is_timed(tmp_path, capsys):
    path, common = (
        tmp_path / "stream.json",
        ["bench", "--stream", "--warm-up", "0", "--device", "cpu", "--size", "112x112"],
    )
    assert cli.main([*common, "--repeats", "1", "--frames", "3", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 2 * 4
    for row in rows:
        assert row["reused"] == pytest.approx(0 if row["mode"] == "whole" else 2 / 3)
        assert row["step_ms"]["median"] > 0 and row["ratio"] > 0 and (row["saved_ms"] > 0) == (row["reused"] > 0)
        assert (row["kept_ratio"] < 1) == (row["accelerator"] == "come")
    told = capsys.readouterr().out
    assert told.count("kept, one anchor") == 2 and "| 67% |" in told
    assert cli.main([*common, "--frames", "1"]) == 1 and "2 frames or more" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fast", "temporal"])
def test_what_is_merged_inside_of_attention_is_an_own_step(backbone, x, name):
    from come_ros.accelerators import registered

    spent = [0]

    class Costs(registered()[name]):
        def condense(self, *args):
            spent[0] += 1
            return super().condense(*args)

        def expand(self, *args):
            spent[0] += 1000
            return super().expand(*args)

    model = backbone.accelerated(Costs(ratio=0.9))
    split = Split(lambda: spent[0], lambda a, b: b - a)
    _, trunk = _run(model, x, split)
    split.finish()
    blocks = len(model.model.encoder_blocks()) + len(model.model.trunk_blocks())
    parts = split.parts()
    assert (parts["merge"], parts["restore"]) == (blocks, 1000 * blocks) and sum(parts.values()) == spent[0]
    _, plain = model.run(x)
    assert all(torch.equal(trunk.levels[tap], plain.levels[tap]) for tap in plain.levels)


@pytest.mark.slow
def test_with_graphs_every_timed_pass_is_replayed_and_heads_are_heads(monkeypatch):
    from tqdm import tqdm

    one = graphed(TorchBackbone("vggt", tiny("vggt"), NoAccelerator(), device="cpu"), monkeypatch)
    models = {"none": one, "come": one.accelerated(CoMe(ConfidencePredictor(WIDTH, 8).eval(), 0, group=(2, 2)))}
    images, replayed = np.zeros((2, 56, 70, 3), np.uint8), {}

    def noted(backbone, *args):
        counts = [len(g.replayed) for g in CountedGraphs.all]
        found = timed(backbone, *args)
        graphs = backbone._graphs
        new = graphs.replayed[counts[CountedGraphs.all.index(graphs)] :]
        replayed.setdefault(backbone.accelerator.name, []).append(new)
        return found

    monkeypatch.setattr(model, "timed", noted)
    rows = model._rows(models, images, 0, 3, SimpleNamespace(no_flops=False, limit=0), 1e9, False, tqdm(disable=True))
    stages = ["_encode_now", "_attend_now", "_encode_now", "_finish_now"]
    assert replayed == {name: 4 * [stages] for name in models}
    for row in rows.values():
        assert set(row["parts_ms"]) == {WHOLE, "heads"} and row["own"] is None
        assert row["trunk_ms"]["median"] > 0 and row["gflop_trunk"] > 0
    assert rows["come"]["gflop_trunk"] < rows["none"]["gflop_trunk"], "FLOPs are counted step by step"
