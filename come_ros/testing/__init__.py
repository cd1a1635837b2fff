"""Contract tests for plug-ins in your own packages. They require pytest.

Inherit a contract in a test class of yours and give it the fixture `make`, or for readers `source`; see come_ros/accelerators/README.md.
"""

import pytest

pytest.register_assert_rewrite(f"{__name__}.accelerators", f"{__name__}.backbones", f"{__name__}.readers")

from .accelerators import AcceleratorContract  # noqa: E402
from .backbones import BackboneContract  # noqa: E402
from .models import tiny  # noqa: E402
from .readers import ReaderContract  # noqa: E402

__all__ = ["AcceleratorContract", "BackboneContract", "ReaderContract", "tiny"]
