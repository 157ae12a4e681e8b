"""Handwritten digits: real images without a download.

`digits.npz` holds the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0), the part that scikit-learn ships:
grey levels 0 to 16 as uint8 `images` [1797, 8, 8], and `labels` [1797].
"""

from importlib.resources import files

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
    with files("pdlab.data").joinpath("digits.npz").open("rb") as file, np.load(file) as digits:
        images, labels = digits["images"], digits["labels"]
    levels = np.rint(images * (255 / 16)).astype(np.uint8)
    return ImageSource(
        images=torch.from_numpy(levels[:, None]),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=tuple(str(digit) for digit in range(10)),
        name="digits",
        split=split,
    )
