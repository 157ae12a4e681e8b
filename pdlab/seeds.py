"""Independent random streams from one seed."""

import hashlib

import torch


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed for the stream named by `parts`, e.g. `seed_for(seed, "train", step)`.

    Every update of a run draws from its own stream, so that a resumed run continues bit for bit.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on `device` at the start of the stream named by `parts`."""
    return torch.Generator(device).manual_seed(seed_for(*parts))
