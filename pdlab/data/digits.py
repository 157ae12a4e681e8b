"""The handwritten digits that scikit-learn ships: real images without a download."""

import numpy as np
import torch

from pdlab.data.source import ImageSource
from pdlab.errors import PdlabError


def load(split: str = "train") -> ImageSource:
    """1797 images 1 x 8 x 8 with labels 0 to 9; grey levels 0 to 16 become u = round(255 v / 16).

    Raises:
        PdlabError: a split other than "train", for there is none.
    """
    if split != "train":
        raise PdlabError(f'digits has only the split "train", not "{split}"')
    from sklearn.datasets import load_digits  # slow to import, and nothing else here needs it

    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ImageSource(
        images=torch.from_numpy(levels[:, None]),
        labels=torch.from_numpy(digits.target.astype(np.int64)),
        classes=tuple(str(digit) for digit in range(10)),
        name="digits",
        split=split,
    )
