"""The width-scaled CNN of the MNIST scaling study (https://github.com/jacobhilton/deep_learning_curriculum, chapter 2).

Shape suffixes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from scalespec.trainables.data import images
from scalespec.trainables.evals.predictions import PREDICTIONS
from scalespec.trainables.evals.seam import Eval
from scalespec.trainables.keys import key
from scalespec.trainables.rules.dropout import Dropout
from scalespec.trainables.spec import DataConfig
from scalespec.trainables.task import Dataset, Losses

# Mean and standard deviation of the training pixels on a scale of 0 to 1,
# as in https://github.com/pytorch/examples/blob/main/mnist/main.py
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Options:
    """Options of the CNN."""

    dropout: float = key(
        "Share of the features zeroed before the linear layer while training.", default=0.0, born=0.0, least=0, below=1
    )


class Cnn(nn.Module):
    """Images (B, 28, 28) of 0 to 255 to logits (B, 10). `width` = channels of the first convolution, the second has twice."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(2 * width * 7 * 7, 10)

    def forward(self, pixels_BHW: Tensor) -> Tensor:
        # The channel is the last axis in memory: convolutions keep that layout, and pooling is several times faster in it.
        x_BCHW = pixels_BHW.unsqueeze(3).permute(0, 3, 1, 2).to(self.linear.weight.dtype)
        x_BCHW = (x_BCHW / 255 - PIXEL_MEAN) / PIXEL_STD
        # The ReLU commutes with the maximum and has a quarter of the work after it.
        x_BCHW = F.relu(F.max_pool2d(self.conv1(x_BCHW), 2))
        x_BCHW = F.relu(F.max_pool2d(self.conv2(x_BCHW), 2))
        logits: Tensor = self.linear(self.dropout(x_BCHW.flatten(1)))
        return logits


class MnistCnn:
    """Classification of 28 × 28 grey images into ten classes."""

    VERSION: ClassVar[int] = 2
    Options: ClassVar[type] = Options
    UNIT: ClassVar[str] = "images"
    evals: ClassVar[tuple[Eval, ...]] = (PREDICTIONS,)

    def __init__(self, options: Any) -> None:
        self.options: Options = options

    @staticmethod
    def round_width(width: float) -> int:
        """The nearest integer, at least 1."""
        return max(1, math.floor(width + 0.5))

    def load(self, data: DataConfig) -> Dataset:
        """Images and labels; see `trainables.data.images.load`."""
        return images.load(data)

    def build(self, width: int) -> nn.Module:
        """A CNN with PyTorch's default initialisation, U(±1/√fan_in)."""
        return Cnn(width, self.options.dropout)

    def losses(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        """Cross-entropy of each image, and out of training 1 or 0 for a right or wrong class."""
        pixels_BHW, labels_B = batch
        logits: Tensor = model(pixels_BHW)
        loss_B = F.cross_entropy(logits, labels_B, reduction="none")
        return Losses(loss_B, None if model.training else (logits.argmax(1) == labels_B).float())
