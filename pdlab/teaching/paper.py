"""Figures of the paper (Salimans & Ho, ICLR 2022) that the app and the notebooks draw beside measured ones."""

#: FID-50k on CIFAR-10 by sampling steps. Distilled at 1, 2, 4 and 8 steps from the text; the rest read off a plot.
FID: dict[str, dict[int, float]] = {
    "distilled": {
        1: 9.12,
        2: 4.51,
        4: 3.00,
        8: 2.57,
        16: 2.46,
        32: 2.40,
        64: 2.39,
        128: 2.38,
        256: 2.38,
        512: 2.39,
    },
    "ddim": {8: 21.0, 16: 9.68, 32: 6.00, 64: 4.27, 128: 3.29, 256: 2.80, 512: 2.60},
    "ancestral": {8: 26.0, 16: 9.93, 32: 4.54, 64: 3.05, 128: 2.46, 256: 2.37, 512: 2.36},
}
