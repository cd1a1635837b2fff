"""Settings are values: a model with others is another one that shares its weights, and what was recorded of it."""

import pytest
import torch
from accelerators.test_contract import seeded
from models import WIDTH, tiny

from come_ros.accelerators import CoMe, NoAccelerator
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.backbones.base import TorchBackbone
from come_ros.backbones.fake import FakeBackbone
from come_ros.config import Config
from come_ros.errors import ConfigError
from come_ros.pipeline import ReconstructionPipeline


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
