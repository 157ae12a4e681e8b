"""How the ladders of the zoo are made: which settings, and what is measured on how many samples."""

from dataclasses import dataclass, replace

from pdlab.errors import PdlabError
from pdlab.metrics.card import Kind
from pdlab.training.presets import Preset, preset


@dataclass(frozen=True)
class Recipe:
    """What `build` does with the preset of the same name.

    Undistilled samplers are read at 1, 2, 4, … steps: DDIM up to `ddim` steps, the others at up to as many
    network evaluations as `others`. The ancestral sampler's variance is chosen among `nus` for each step count
    by the Fréchet distance of `nu_n` samples, and measured anew. Figures are of `n` samples, and of `kinds`, which
    begin with the two distances.
    """

    n: int = 50_000
    ddim: int = 512
    others: int = 128
    nus: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    nu_n: int = 10_000
    pool: int = 2048
    kinds: tuple[Kind, ...] = ("frechet", "kernel")


_RECIPES = {
    "digits": Recipe(n=2000, ddim=64, others=64, nus=(0.0, 0.3, 1.0), nu_n=1000),
    "cifar10-gpu": Recipe(),
    # Two cores: three quarters of an hour, not a day.
    "cifar10-16px": Recipe(n=5000, ddim=128, others=64, nus=(0.0, 0.3, 1.0), nu_n=1300),
}


def recipe(name: str) -> tuple[Preset, Recipe]:
    """The preset `name` and how its ladder is measured; PdlabError for an unknown one."""
    return preset(name), _RECIPES.get(name, Recipe())


def adjusted(recipe: Recipe, n: int | None, dim: int) -> Recipe:
    """`recipe` with `n` samples a figure, if given; PdlabError if they are too few for features of `dim`."""
    n = recipe.n if n is None else n
    if n <= dim:
        raise PdlabError(
            f"--n {n} is too few: a Fréchet distance of {dim} features takes {dim + 1} samples or more"
        )
    return replace(recipe, n=n, nu_n=max(dim + 1, min(recipe.nu_n, n)))
