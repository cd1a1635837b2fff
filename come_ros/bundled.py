"""Where the files of the model that ships with the package are."""

from __future__ import annotations

import os

MODEL_FOLDER = os.path.join(os.path.dirname(__file__), "models")
BUNDLED = "vggt_tiny2"
"""of its weights in that folder: NAME.safetensors; what belongs to them lies next to them, see companions.py"""
VARIANT = BUNDLED.partition("_")[2]
"""the name of its sizes among those of its backbone"""
