"""The script of the GPU's benchmark, dry: a small model on the CPU, the same code. Its figures mean nothing here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from models import TINY, tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmark/speed"))
import gpu

from come_ros.accelerators import CoMe
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.backbones.vggt import VARIANTS
from come_ros.tools.bench.split import count_flops


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", TINY["vggt"])


def run(folder, *words):
    gpu.main(["--device", "cpu", "--tiny", "--out", str(folder), *words])
    return json.loads((folder / "gpu.json").read_text())["rows"]


@pytest.mark.slow
def test_rows_are_measured_once_and_failures_told(tmp_path, monkeypatch, capsys):
    only = ["--only", "ceiling copy", "pass 84x84 1", "kernel merge"]
    monkeypatch.setattr(
        gpu, "copy_ceiling", lambda b: (_ for _ in ()).throw(RuntimeError("CUDA out of memory\nand more"))
    )
    rows = run(tmp_path, *only)
    assert set(rows) == {"ceiling copy", "kernel merge 1 float32", "pass 84x84 1"}
    assert rows["ceiling copy"]["error"] == "RuntimeError: CUDA out of memory"
    assert not any(row["error"] for key, row in rows.items() if key != "ceiling copy")
    models = rows["pass 84x84 1"]["models"]
    dense, ours = models["none"], models[gpu.COME]
    assert dense["gain"] == 1 and ours["gain"] > 0 and ours["kept_ratio"] == pytest.approx((36 - 8 * 2) / 36)
    assert dense["predicted"]["flops_ms"] > ours["predicted"]["flops_ms"] > 0 and ours["ideal_gain"] > 1
    assert dense["predicted"]["rates"]["of"]["copy_gb_s"] == "nominal H100"

    capsys.readouterr()
    assert run(tmp_path, *only) == rows
    assert capsys.readouterr().out == ""
    run(tmp_path, *only, "--again", "--minutes", "0.001")
    assert "the time is up before 'ceiling copy'" in capsys.readouterr().out
    text = (tmp_path / "gpu.md").read_text()
    assert (
        "dry run on a CPU" in text and "Predicted, not measured" in text and "RuntimeError: CUDA out of memory" in text
    )
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


@pytest.mark.slow
def test_predicted_flops_are_those_of_a_pass(tmp_path):
    b = gpu.Bench(gpu.Scale.tiny(), "cpu", {})
    predictor = ConfidencePredictor(48, 32).eval().requires_grad_(False)
    shapes = gpu.Shapes(tiny("vggt").requires_grad_(False), CoMe(predictor, 0, ratio=0.5))
    found = count_flops(shapes, torch.rand(1, 3, 3, 84, 84), 0)
    told = b.flops(0.5, 3, (84, 84))
    assert told == pytest.approx(found) and sum(b.flops(0, 3, (84, 84)).values()) > sum(told.values())


def test_the_best_way_is_that_of_all_sizes():
    def row(ms, error=""):
        return {"error": error, "ms": {"median": ms}}

    rows = {
        "tune 1 fp32 none": row(10),
        "tune 8 fp32 none": row(40),
        "tune 1 bf16 graph": row(4),
        "tune 8 bf16 graph": row(50),
    }
    assert gpu.best_way(rows) == {"attention": "auto", "heads": "bf16", "optimize": "graph"}
    rows |= {"tune 1 bf16 compile": row(1), "tune 8 bf16 compile": row(1, "it failed")}
    assert gpu.best_way(rows)["optimize"] == "graph"
    assert gpu.best_way({})["optimize"] == "none"
