"""Images with the class that the model gives them, at the end of a run."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from scalespec.trainables import media
from scalespec.trainables.evals.seam import Context, Eval, Measured
from scalespec.trainables.evals.validation import autocast, to_device
from scalespec.trainables.task import Dataset, Task

FRAME = 2
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
"""Blue and vermilion of Okabe and Ito's palette, which everyone can tell apart."""

DIGITS = (0x7B6F, 0x2C97, 0x73E7, 0x73CF, 0x5BC9, 0x79CF, 0x79EF, 0x7249, 0x7BEF, 0x7BCF)
"""0 to 9 in 3 × 5 pixels, row by row from the highest of 15 bits."""


def predictions(task: Task, model: nn.Module, data: Dataset, context: Context) -> Measured:
    """The first validation images in a square grid, each with its predicted class and a frame: blue if right.

    For tasks whose arrays are images (n, H, W) of uint8 and labels 0 … 9, and whose model gives logits of images.
    """
    if context.group.rank:
        return Measured()
    count = min(context.examples or data.val_examples, data.val_examples)
    pixels, labels = to_device(data.val, np.arange(count), context.group.device)
    with autocast(context.group.device, context.spec.train.precision):
        classes: torch.Tensor = model(pixels).argmax(1)
    drawn = [
        _framed(image, int(found), RIGHT if found == label else WRONG)
        for image, found, label in zip(data.val[0][:count], classes.cpu(), labels.cpu(), strict=True)
    ]
    return Measured(media=[media.image("predictions", grid(np.stack(drawn)))])


def grid(images_BHWC: np.ndarray) -> np.ndarray:
    """Images side by side in as square a grid as their number allows, black where there is none."""
    B, H, W, C = images_BHWC.shape
    columns = math.ceil(math.sqrt(B))
    rows = math.ceil(B / columns)
    whole = np.zeros((rows * columns, H, W, C), images_BHWC.dtype)
    whole[:B] = images_BHWC
    return whole.reshape(rows, columns, H, W, C).transpose(0, 2, 1, 3, 4).reshape(rows * H, columns * W, C)


def _framed(image_HW: np.ndarray, digit: int, colour: tuple[int, int, int]) -> np.ndarray:
    """An image in RGB with a frame and, in its corner, a digit of that colour."""
    out = np.full((*(size + 2 * FRAME for size in image_HW.shape), 3), colour, np.uint8)
    out[FRAME:-FRAME, FRAME:-FRAME] = image_HW[..., None]
    bits = np.array([DIGITS[digit] >> place & 1 for place in range(14, -1, -1)], bool).reshape(5, 3)
    out[FRAME + 1 : FRAME + 6, FRAME + 1 : FRAME + 4][bits] = colour
    return out


PREDICTIONS = Eval("predictions", "last", predictions, examples=64, shows=True)
