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
from pdlab.diffusion.prediction import from_x
from pdlab.diffusion.schedule import diffuse, per_example
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.training.objective import TIMES, Drawn, Objective, needed

#: Name of the stage and of its checkpoint.
CONVERTED = "converted"
#: The share of examples that a converted network with a null class is told no class of.
LABEL_DROP = 0.1


class ConversionObjective(Objective):
    """The student's prediction at z_t, t ~ U(0, 1], against the `teacher`'s x̂; forward passes of that: 1.

    Of bounded data the x̂ are clipped to [−1, 1], as they are when the teacher is sampled: near alpha = 0 they leave
    it, by any amount.
    """

    teacher_forwards = 1

    def __init__(self, teacher: Denoiser, weighting: str, times: str = "stratified") -> None:
        self.teacher, self.weighting, self.times = teacher, WEIGHTINGS[weighting], TIMES[times]

    def draw(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Drawn:
        """See Objective."""
        t = self.times(len(x), generator, x.device)
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        if labels is not None and denoiser.null_class:
            dropped = torch.rand(len(x), generator=generator, device=x.device) < LABEL_DROP
            labels = torch.where(dropped, denoiser.num_classes, labels)
        return {"x": x, "labels": labels, "t": t, "eps": eps}

    def loss(self, denoiser: Denoiser, drawn: Drawn) -> Tensor:
        """See Objective."""
        (x, t, eps), labels = needed(drawn, "x", "t", "eps"), drawn["labels"]
        z = diffuse(denoiser.schedule, x, t, eps)
        with torch.no_grad():
            target = self.teacher(z, t, labels)
            if denoiser.bounded:
                alpha, sigma = (
                    per_example(denoiser.schedule.alpha(t), z),
                    per_example(denoiser.schedule.sigma(t), z),
                )
                target = from_x(z, alpha, sigma, target.x.clamp(-1, 1))
        return self.weighting.loss(target, denoiser(z, t, labels))


def converted_student(teacher: Denoiser) -> Denoiser:
    """A copy of the eps `teacher` whose output is read as v; not converted yet."""
    student = teacher.around(copy.deepcopy(teacher.network))
    student.output = "v"
    return student
