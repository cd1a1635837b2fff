"""Settings are values: a model with others is another one that shares its weights, and what was recorded of it."""

import numpy as np
import pytest
import torch
from accelerators.test_contract import seeded
from models import WIDTH, CountedGraphs, graphed, tiny

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.backbones.fake import FakeBackbone
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.config import Config
from come_ros.errors import ConfigError
from come_ros.pipeline import ReconstructionPipeline
from come_ros.self_check import SelfCheck
from come_ros.types import Frame


def config_of(ratio, name="come"):
    return Config.from_flat({"accelerator.name": name, "accelerator.ratio": ratio, "accelerator.group": "2x2"})


def backbone_of(ratio=0.25):
    come = CoMe(seeded(lambda: ConfidencePredictor(WIDTH, 8)), 0, ratio=ratio, group=(2, 2))
    return TorchBackbone("vggt", tiny("vggt"), come, device="cpu")


def test_other_parameters_are_another_model_and_the_given_one_stays():
    given = backbone_of(0.25)
    pipeline = ReconstructionPipeline(config_of(0.5), given)
    assert (given.accelerator.ratio, pipeline.backbone.accelerator.ratio) == (0.25, 0.5)
    assert pipeline.backbone.model is given.model
    pipeline.set_config(config_of(0.75))
    assert (given.accelerator.ratio, pipeline.backbone.accelerator.ratio) == (0.25, 0.75)


def test_what_ran_before_is_found_again():
    given = backbone_of(0.25)
    assert given.configured(config_of(0.25)) is given
    there = given.configured(config_of(0.5))
    assert there.configured(config_of(0.25)).accelerator is given.accelerator
    assert given.configured(config_of(0.5)).accelerator is there.accelerator


def test_a_configuration_of_another_accelerator_is_refused():
    with pytest.raises(ConfigError, match=r"accelerator\.name is none, but the model that was given runs come"):
        ReconstructionPipeline(Config(), backbone_of())


def test_a_copy_describes_itself():
    given = backbone_of()
    dense = given.dense()
    assert (dense.description["accelerator"], given.description["accelerator"]) == ("none", "come")
    assert dense.accelerated(given.accelerator).description == given.description


def test_the_dense_model_is_one_for_all_copies():
    given = backbone_of()
    there = given.configured(config_of(0.5))
    assert given.dense() is there.dense() is given.dense().dense()
    plain = TorchBackbone("vggt", tiny("vggt"), NoAccelerator(), device="cpu")
    assert plain.dense() is plain


def test_the_stand_in_counts_all_its_copies_together():
    given = FakeBackbone()
    other = given.configured(config_of(0.5))
    for each in (given, other):
        each.predict(torch.zeros(2, 28, 28, 3, dtype=torch.uint8).numpy())
    assert given.windows == other.windows == 2 and [load.ratio for load in given.loads] == [0.0, 0.5]


STAGES = ["_encode_now", "_finish_now"]


def test_recordings_are_found_again_when_a_knob_is_turned_back(monkeypatch):
    given = graphed(backbone_of(0.25), monkeypatch)
    other, x = given.configured(config_of(0.5)), torch.rand(1, 2, 3, 56, 70)
    for model in (given, given, given, other, other, other):
        model.run(x)
    assert given._graphs.recorded == 2 * STAGES and given._graphs.replayed == 4 * STAGES
    back = other.configured(config_of(0.25))
    assert back.run(x)[1].plan.rev.shape == given.run(x)[1].plan.rev.shape
    assert back._graphs.recorded == 2 * STAGES, "nothing is recorded a second time"


def test_both_sides_of_a_comparison_are_replayed(monkeypatch):
    """It was graph against eager: the dense copy was made again, with no recordings, each time."""
    config = Config.from_flat({**config_of(0.5).to_flat(), "window.size": 3, "window.overlap": 1, "keyframe.mode": "every",
                               "input.max_side": 112})  # fmt: skip
    pipeline = ReconstructionPipeline(config, graphed(backbone_of(0.5), monkeypatch))
    images = np.random.default_rng(0).integers(0, 256, (3, 84, 112, 3), np.uint8)
    for i, image in enumerate(images):
        pipeline.add_frame(Frame(image, i + 1))
    pipeline.reconstruct(pipeline.take_window())
    ours, dense = pipeline.backbone._graphs, pipeline.backbone.dense()._graphs
    check = SelfCheck(pipeline)
    check.compare()
    before = len(ours.replayed), len(dense.replayed)
    for _ in range(2):
        check.compare()
    assert len(ours.replayed) - before[0] == len(dense.replayed) - before[1] == 2 * len(STAGES)
    assert dense.recorded == STAGES and len(CountedGraphs.all) == 2
    pipeline.backbone.free_memory()
    assert not ours._seen and not dense._seen
