"""From an eps network to a v network, before the first halving.

Near alpha = 0 an eps network's x̂ = (z − sigma eps) / alpha is its error divided by alpha, and a student of few
steps lives there: the paper reports that distilling eps networks did not work well. A network of the same kind,
whose output is read as v, first learns the teacher's x̂ at the same times, from the teacher's weights on: where
there is little noise v is eps, so only the noisy times are new to it.
"""

import copy

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction, clip_x
from pdlab.diffusion.schedule import per_example
from pdlab.training.objective import DiffusionObjective, Drawn, needed

#: Name of the stage and of its checkpoint.
CONVERTED = "converted"
#: The share of examples that a converted network with a null class is told no class of.
LABEL_DROP = 0.1


class ConversionObjective(DiffusionObjective):
    """The student's prediction at z_t, t ~ U(0, 1], against the `teacher`'s x̂; forward passes of that: 1.

    Of bounded data the x̂ are clipped to [−1, 1], as they are when the teacher is sampled: near alpha = 0 they leave
    it, by any amount.
    """

    teacher_forwards = 1

    def __init__(self, teacher: Denoiser, weighting: str, times: str = "stratified") -> None:
        super().__init__(weighting, LABEL_DROP if teacher.null_class else 0.0, times)
        self.teacher = teacher

    @torch.no_grad()
    def target(self, denoiser: Denoiser, z: Tensor, drawn: Drawn) -> Prediction:
        """See DiffusionObjective."""
        (t,) = needed(drawn, "t")
        found = self.teacher(z, t, drawn["labels"])
        if not denoiser.bounded:
            return found
        alpha, sigma = (per_example(of(t), z) for of in (denoiser.schedule.alpha, denoiser.schedule.sigma))
        return clip_x(z, alpha, sigma, found)


def converted_student(teacher: Denoiser) -> Denoiser:
    """A copy of the eps `teacher` whose output is read as v; not converted yet."""
    student = teacher.around(copy.deepcopy(teacher.network))
    student.output = "v"
    return student
