"""A convolutional stem in front of a transformer: the first stages of EfficientNet-Lite0, down to a sixteenth of the image.

Written from the papers (MBConv: Sandler et al., CVPR 2018; EfficientNet: Tan & Le, ICML 2019) and from the key names and shapes of the
published ImageNet weights. The Lite models have neither squeeze-and-excitation nor swish. Batch norms are folded into the
convolutions (`folded`), in training too: statistics of a few frames of one room would harm them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Block, PatchEncoder

STRIDE = 16
FINE_STRIDES = (4, 8)
FINE_CHANNELS = (24, 40)  # of the features at FINE_STRIDES
CHANNELS = 112  # of the features at STRIDE
# kernel, stride, expansion, channels out, of each block; stages 1 to 5
LITE0 = (
    (3, 1, 1, 16),
    (3, 2, 6, 24), (3, 1, 6, 24),
    (5, 2, 6, 40), (5, 1, 6, 40),
    (3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80),
    (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112),
)  # fmt: skip
FINE_BLOCKS = (2, 4)  # the last ones at FINE_STRIDES
BATCH_NORM_EPS = 1e-3


class InvertedBottleneck(nn.Module):
    """MBConv: expand, depthwise convolution, project; with a skip connection where the shapes allow it."""

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Conv2d(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = convolution(wide, wide, kernel, stride, groups=wide)
        self.project = nn.Conv2d(wide, outputs, 1)
        self._skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        out = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return x + out if self._skip else out


def convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    """A convolution padded as TensorFlow's "same", for images whose sides are multiples of the stride.

    With stride 2 this pads one pixel more at the right and bottom than at the left and top. A kernel with an additional leading row
    and column, initially zero, does the same with symmetric padding and needs no padded copy of the image.
    """
    kernel += stride - 1
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups)


class EfficientNetStem(nn.Module):
    """Images to features at strides 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        channels = 32
        for kernel, stride, expansion, outputs in LITE0:
            self.blocks.append(InvertedBottleneck(channels, kernel, stride, expansion, outputs))
            channels = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) RGB in [0, 1], sides multiples of 16 -> features (B, 112, H/16, W/16); and those at FINE_STRIDES, of
        FINE_CHANNELS channels."""
        x = (images * 255 - 127) / 128  # as the weights were trained
        # on a CPU, depthwise convolutions are several times as fast in channels-last memory format
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)), inplace=True)
        fine = []
        for i, block in enumerate(self.blocks):
            x = _learning(block, x) if _learns(block, x) else block(x)
            if i in FINE_BLOCKS:
                fine.append(x)
        return x, fine


def _learns(block: nn.Module, x: Tensor) -> bool:
    """Whether the block will be differentiated, on a CPU."""
    return torch.is_grad_enabled() and x.device.type == "cpu" and next(block.parameters()).requires_grad


def _learning(block: nn.Module, x: Tensor) -> Tensor:
    """Runs in fp32 even under autocast: on a CPU, the backward pass of depthwise convolutions takes twice as long in bf16."""
    with torch.autocast("cpu", enabled=False):
        out: Tensor = block(x.float())
        return out


class StemEncoder(PatchEncoder):
    """A stem in place of the patch projection, then a few transformer blocks: see PatchEncoder, whose tokens and tables it has."""

    def __init__(self, side: int, dim: int, blocks: Iterable[Block], *, registers: int) -> None:
        super().__init__(side, STRIDE, dim, blocks, registers=registers, projection=nn.Conv2d(CHANNELS, dim, 1))
        self.stem = EfficientNetStem()

    def embed(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE:  # else features of different strides would not lie on each other
            raise ValueError(f"an image is {width}x{height} px, but both sides must be multiples of {STRIDE}: crop it")
        x, fine = self.stem(images)
        return self.patch_embed(x).flatten(2).transpose(1, 2), fine


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an EfficientNetStem from published EfficientNet-Lite0 weights: batch norms are folded into the convolutions.

    state: tensors by their published names (`_conv_stem.weight`, `_bn0.weight`, `_blocks.3._expand_conv.weight`, ...); the later
    stages and the classifier are left out. Raises KeyError if one is missing.
    """
    pairs: list[tuple[str, str, str]] = [("stem", "_conv_stem", "_bn0")]
    for i, (_, _, expansion, _) in enumerate(LITE0):
        steps: Sequence[tuple[str, str, str]] = (
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        )
        pairs += [
            (f"blocks.{i}.{ours}", f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
            for ours, conv, norm in steps[0 if expansion > 1 else 1 :]
        ]
    out, strided = {}, {"stem"} | {f"blocks.{i}.depthwise" for i, (_, stride, _, _) in enumerate(LITE0) if stride > 1}
    for ours, conv, norm in pairs:
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
        weight = (state[f"{conv}.weight"] * gain[:, None, None, None]).float()
        out[f"{ours}.weight"] = F.pad(weight, (1, 0, 1, 0)) if ours in strided else weight
        out[f"{ours}.bias"] = (state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain).float()
    return out
