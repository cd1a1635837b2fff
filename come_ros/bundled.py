"""Where the files of the model that ships with the package are."""

from __future__ import annotations

import os

MODEL_FOLDER = os.path.join(os.path.dirname(__file__), "models")
BUNDLED = "vggt_tiny2"
"""of its files in that folder: NAME.safetensors, NAME.attention.json, come_NAME.safetensors, pace_NAME.safetensors"""
