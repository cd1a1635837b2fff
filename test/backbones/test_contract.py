"""What every backbone promises to the pipeline."""

import pytest
from models import TINY, tiny

from come_ros.accelerators import NoAccelerator
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.testing import BackboneContract


class TestFirstStageOfLingBot(BackboneContract):
    @pytest.fixture
    def make(self):
        sizes = {"causal": False, "scale_token": False, "points": True, "rope_split": ()}
        return lambda: TorchBackbone("lingbot", tiny("lingbot", **sizes), NoAccelerator(), device="cpu")


class TestEveryModel(BackboneContract):
    @pytest.fixture(params=sorted(TINY))
    def make(self, request):
        return lambda: TorchBackbone(
            request.param, tiny(request.param), NoAccelerator(), device="cpu", weights="random"
        )
