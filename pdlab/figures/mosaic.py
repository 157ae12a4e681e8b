"""Images side by side, as one image."""

import torch
from torch import Tensor


def mosaic(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Images uint8 `[N, C, H, W]` as one uint8 `[H', W', 3]`, `columns` in a row, white gaps between."""
    images = images.expand(-1, 3, -1, -1)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8
    )
    for k, image in enumerate(images):
        top, left = (k // columns) * (height + gap), (k % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet.permute(1, 2, 0)
