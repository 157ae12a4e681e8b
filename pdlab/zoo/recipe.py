"""How the ladders of the zoo are made: which settings, and what is measured on how many samples."""

from dataclasses import dataclass, replace

from pdlab.errors import PdlabError
from pdlab.metrics.card import Kind
from pdlab.training.presets import Preset, preset


@dataclass(frozen=True)
class LadderRecipe:
    """What `build` makes of a preset: the teacher's earlier stages, and what is measured and drawn.

    The presets `grown_from` come before, each teacher growing from the one before. A ladder with guidance is
    measured at every weight of `guidances`, and its pictures are drawn at `shown` and at 0.

    Undistilled samplers are read at 1, 2, 4, … steps: DDIM up to `ddim` steps, the others at up to as many
    steps as `others`. With `briefly`, all of that but Heun's rule, at the weight `shown` alone, and at the other
    weights DPM-Solver++ at its most steps: what students there are held against. The ancestral sampler's variance
    is chosen among `nus` for each step count by the Fréchet distance of `nu_n` samples, and measured anew. Figures
    are of `n` samples, and of `kinds`, which begin with the two distances. `on_the_way` quick distances of the
    teacher are taken while it is trained. Undistilled DDIM is drawn at 1, 2, 4, … steps up to the preset's
    first_steps, or to `drawn`.
    """

    n: int = 50_000
    ddim: int = 512
    others: int = 128
    nus: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    nu_n: int = 10_000
    pool: int = 2048
    briefly: bool = False
    on_the_way: int = 0
    drawn: int = 0
    grown_from: tuple[str, ...] = ()
    guidances: tuple[float, ...] = (0.0,)
    shown: float = 0.0
    kinds: tuple[Kind, ...] = ("frechet", "kernel")


#: The preset that makes a ladder, where that has another name.
_PRESETS = {"cifar10": "cifar10-gpu"}
_ALL: tuple[Kind, ...] = ("frechet", "kernel", "agreement", "precision", "recall")
#: Distances, agreement and variety of a ladder with classes, without the ancestral sampler's search.
_CLASSES = LadderRecipe(n=10_000, nus=(), briefly=True, on_the_way=6, drawn=64, kinds=_ALL)
_RECIPES = {
    "digits": LadderRecipe(n=2000, ddim=64, others=64, nus=(0.0, 0.3, 1.0), nu_n=1000),
    # Minutes of a GPU, as its training is.
    "cifar10-gpu": replace(_CLASSES, ddim=16, others=16, guidances=(0.0, 0.5, 1.0, 2.0), shown=1.0),
    # Two cores: hours, not days.
    "cifar10-cpu": replace(
        _CLASSES,
        ddim=8,
        others=16,
        grown_from=("cifar10-cpu-16px", "cifar10-cpu-classes"),
        guidances=(0.0, 1.5, 3.0),
        shown=1.5,
    ),
}


def recipe(name: str, by: str | None = None) -> tuple[Preset, LadderRecipe]:
    """The preset that ladder `name` is made by (`by`, or its own) and its recipe; PdlabError for an unknown one."""
    settings = preset(by or _PRESETS.get(name, name))
    return settings, _RECIPES.get(settings.name, LadderRecipe())


def adjusted(recipe: LadderRecipe, n: int | None, dim: int) -> LadderRecipe:
    """`recipe` with `n` samples a figure, if given; PdlabError if they are too few for features of `dim`."""
    n = recipe.n if n is None else n
    if n <= dim:
        raise PdlabError(
            f"--n {n} is too few: a Fréchet distance of {dim} features takes {dim + 1} samples or more"
        )
    return replace(recipe, n=n, nu_n=max(dim + 1, min(recipe.nu_n, n)))
