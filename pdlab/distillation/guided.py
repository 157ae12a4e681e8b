"""Stage one of guided distillation: one network call that answers as the guided teacher (Meng et al. 2023).

The teacher's guided prediction, x_w = (1 + w) x(z, class) − w x(z, no class), costs two evaluations. A student that
is also told w learns it in one, for every w in [0, guidance_max] at once. The halving rounds then go on from that
student with w drawn for each example and given to teacher and student alike; guided again in every round, the
guidance would compound.
"""

import dataclasses

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction
from pdlab.errors import PdlabError
from pdlab.networks.registry import CONDITION, Own, build, config_of
from pdlab.seeds import seed_for
from pdlab.training.objective import DiffusionObjective, Drawn, needed

#: Name of stage one's checkpoint and stage.
GUIDED = "guided"


class GuidedObjective(DiffusionObjective):
    """Stage one's: the student's prediction at (z_t, class, w) against the `teacher`'s guided by w.

    t ~ U(0, 1], drawn as `times` says, w ~ U[0, guidance_max] for each example, at the weighting the teacher was
    trained with.
    """

    teacher_forwards = 2  # one call of twice the batch

    def __init__(self, teacher: Denoiser, weighting: str, times: str = "stratified") -> None:
        super().__init__(weighting, times=times)
        self.teacher = teacher

    def draw(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Drawn:
        """See Objective."""
        drawn = super().draw(denoiser, x, labels, generator)
        return drawn | {"w": draw_guidance(denoiser, len(x), generator, x.device)}

    @torch.no_grad()
    def target(self, denoiser: Denoiser, z: Tensor, drawn: Drawn) -> Prediction:
        """See DiffusionObjective."""
        (t,) = needed(drawn, "t")
        return self.teacher(z, t, drawn["labels"], drawn["w"])


def draw_guidance(denoiser: Denoiser, n: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """`[n]` weights, each U[0, guidance_max]; None for a denoiser that takes none."""
    if not denoiser.guidance_max:
        return None
    return denoiser.guidance_max * torch.rand(n, generator=generator, device=device)


def check_guidable(teacher: Denoiser, guidance_max: float) -> None:
    """Raise PdlabError for a teacher that cannot be guided, or whose network has no way in for a weight."""
    if not teacher.null_class:
        teacher.check_guidance(1.0)
    if not guidance_max > 0:
        raise PdlabError(f"guidance_max must be above 0, not {guidance_max:g}")
    config = config_of(teacher)
    if isinstance(config, Own) or not hasattr(config, "guidance_max"):
        raise PdlabError(
            f"{type(teacher.network).__name__} has no way in for a guidance weight: make it with Denoiser(…, "
            "guidance_max=…) and train it so, or distil without guidance"
        )


def guided_student(teacher: Denoiser, guidance_max: float, seed: int = 0) -> Denoiser:
    """A student with the `teacher`'s weights that is also told w; the new branch starts at 0, i.e. as w = 0.

    It has no null class: what its teacher said of that is part of the guided prediction. `seed` draws the branch's
    first layer. Raises PdlabError as `check_guidable`.
    """
    check_guidable(teacher, guidance_max)
    config = dataclasses.replace(config_of(teacher), guidance_max=guidance_max, null_class=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, GUIDED, "initialization"))
        network = build(config, teacher.output)
    weights = network.state_dict() | teacher.network.state_dict()
    for name, tensor in network.state_dict().items():  # the embedding of "no class" goes
        weights[name] = weights[name][: len(tensor)]
    network.load_state_dict(weights)
    student = teacher.around(network)
    for name in CONDITION:
        setattr(student, name, getattr(config, name))
    return student
