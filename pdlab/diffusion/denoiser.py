"""The one object everything downstream holds: network + parameterization + schedule -> prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pdlab.diffusion.prediction import OUTPUTS, Prediction, output_channels
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.errors import PdlabError


class Denoiser(nn.Module):
    """Called with `(z, t)`, returns a `Prediction` that knows x, eps and v.

    Args:
        network: any module `network(z [B, …], logsnr [B]) -> raw [B, …]`; with `num_classes` it takes the labels
            `[B]` as a third argument (with `condition` that), and with `guidance_max` the guidance weights `[B]` as
            the last.
        output: what raw means: "x", "eps", "v" or "both" (x and eps, twice the channels).
        schedule: gives alpha, sigma and logsnr at t.
        bounded: the data lie in [−1, 1] (images), so samplers clip x by default.
        steps: the number of steps a distilled denoiser was made for; None for an undistilled one.
        num_classes: classes it is conditioned on; 0 for an unconditional one, which gets no labels.
        null_class: label `num_classes` says "no class", so that guidance is possible.
        guidance_max: the network answers as if guided, in one evaluation, for weights in [0, guidance_max]; 0 for
            a network that is not told a weight.
        shape: of one example, e.g. (3, 32, 32), where it is known; training and distilling find it in the data.
        condition: of a network that is told something else than a class, such as the embedding of a text: the
            shape of one condition. Tensors `[B, *condition]` then stand wherever labels do.

    Raises PdlabError for an eps network on a schedule that reaches alpha = 0, where eps does not determine x, and
    for a null class or guidance without classes, or classes beside a condition.
    """

    def __init__(
        self,
        network: nn.Module,
        output: str,
        schedule: CosineSchedule | None = None,
        *,
        bounded: bool = True,
        steps: int | None = None,
        num_classes: int = 0,
        null_class: bool = False,
        guidance_max: float = 0.0,
        shape: Sequence[int] | None = None,
        condition: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if condition is not None and (num_classes or null_class or guidance_max):
            raise PdlabError("a denoiser is told a class or a condition: give num_classes or condition, not both")
        if (null_class or guidance_max) and not num_classes:
            raise PdlabError("null_class and guidance_max need num_classes of at least 1")
        if output not in OUTPUTS:
            raise PdlabError(f"unknown output {output!r}: choose one of {', '.join(OUTPUTS)}")
        self.network = network
        self.output = output
        self.schedule = schedule or CosineSchedule()
        self.bounded = bounded
        self.steps = steps
        self.num_classes = num_classes
        self.null_class = null_class
        self.guidance_max = guidance_max
        self.shape = None if shape is None else tuple(shape)
        self.condition = None if condition is None else tuple(condition)
        self.schedule.check_output(output)

    @property
    def device(self) -> torch.device:
        """Where the network's weights are (the CPU for a network without any)."""
        weight = next(self.network.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    @property
    def conditional(self) -> bool:
        """Whether the network is told a class or a condition."""
        return self.num_classes > 0 or self.condition is not None

    def around(self, network: nn.Module) -> "Denoiser":
        """The same denoiser of another network, e.g. of this one compiled."""
        return Denoiser(
            network,
            self.output,
            self.schedule,
            bounded=self.bounded,
            steps=self.steps,
            num_classes=self.num_classes,
            null_class=self.null_class,
            guidance_max=self.guidance_max,
            shape=self.shape,
            condition=self.condition,
        )

    def forward(
        self,
        z: Tensor,
        t: Tensor | float,
        labels: Tensor | None = None,
        guidance: Tensor | float | None = None,
    ) -> Prediction:
        """Predict from `z` `[B, …]` at times `t` (scalar or `[B]`, in (0, 1]); results in z's dtype.

        `guidance` w (a number or `[B]`, default 0) sharpens towards the class, x = (1 + w) x(z, class) −
        w x(z, no class) (Ho & Salimans 2022): in one call of twice the batch, or by the network itself if that is
        how it was distilled. Labels may be left out where there is a null class. The network may hold its weights
        in a lower precision; alpha, sigma and the conversions are in z's.

        Raises PdlabError for labels that are missing or not taken, and for a network whose output has another shape
        than its `output` needs.
        """
        t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
        logsnr = self.schedule.logsnr(t).expand(z.shape[0])
        raw = self._raw(z, logsnr, self._labels(z, labels), guidance)
        alpha, sigma = per_example(self.schedule.alpha(t), z), per_example(self.schedule.sigma(t), z)
        return OUTPUTS[self.output](z, alpha, sigma, raw)

    def evaluations(self, guidance: float) -> int:
        """Network evaluations of one prediction with this weight: guided, 2, unless it was distilled into one."""
        return 2 if guidance and not self.guidance_max else 1

    def check_guidance(self, guidance: Tensor | float | None) -> None:
        """Raise PdlabError for a weight that this denoiser cannot be guided with."""
        if guidance is None:
            return
        least, most = float(torch.as_tensor(guidance).min()), float(torch.as_tensor(guidance).max())
        if self.guidance_max:
            if not 0 <= least <= most <= self.guidance_max:
                wrong = most if most > self.guidance_max else least
                raise PdlabError(
                    f"guidance {wrong:g} is outside what this model was distilled for: give one in "
                    f"[0, {self.guidance_max:g}]"
                )
        elif (least or most) and not self.null_class:
            raise PdlabError(
                "this model has no null class to be guided away from: leave guidance out, or train one with "
                "network.null_class and teacher.label_drop"
            )
        if not -1e6 < least <= most < 1e6:
            raise PdlabError(f"guidance must be a finite number, not {least:g}")

    def _labels(self, z: Tensor, labels: Tensor | None) -> Tensor | None:
        if self.condition is not None:
            expected = (z.shape[0], *self.condition)
            if labels is None or labels.shape != expected:
                given = "none" if labels is None else str(list(labels.shape))
                raise PdlabError(
                    f"this denoiser is told a condition {list(expected)} in place of labels, not {given}"
                )
            return labels
        if not self.num_classes:
            if labels is not None:
                raise PdlabError("this denoiser has no classes: leave labels out, or make it with num_classes")
            return None
        if labels is None:
            if not self.null_class:
                raise PdlabError(f"this denoiser is told one of {self.num_classes} classes: give labels")
            return torch.full((z.shape[0],), self.num_classes, device=z.device)
        return labels

    def _raw(self, z: Tensor, logsnr: Tensor, labels: Tensor | None, guidance: Tensor | float | None) -> Tensor:
        if self.guidance_max:
            w = torch.as_tensor(0.0 if guidance is None else guidance, dtype=z.dtype, device=z.device)
            return self._answer(z, logsnr, labels, w.expand(z.shape[0]))
        if guidance is None or (isinstance(guidance, float | int) and guidance == 0):
            return self._answer(z, logsnr, labels)
        if not self.null_class or labels is None:
            self.check_guidance(1.0)
            raise AssertionError  # there is always a label where there is a null class
        none = torch.full((z.shape[0],), self.num_classes, device=z.device)
        twice = self._answer(torch.cat([z, z]), torch.cat([logsnr, logsnr]), torch.cat([labels, none]))
        # x, eps and v are affine in raw, and 1 + w − w = 1: guiding raw guides them all.
        n = z.shape[0]  # chunk, and len, would tie an exported graph to its batch
        conditional, unconditional = twice[:n], twice[n:]
        w = per_example(torch.as_tensor(guidance, dtype=z.dtype, device=z.device), z)
        return conditional + w * (conditional - unconditional)

    def _answer(self, z: Tensor, logsnr: Tensor, labels: Tensor | None, *guidance: Tensor) -> Tensor:
        """The network's raw output in z's dtype, computed in the dtype of its weights."""
        weight = next(self.network.parameters(), None)
        if labels is not None and weight is not None and labels.is_floating_point():
            labels = labels.to(weight.dtype)
        condition = guidance if labels is None else (labels, *guidance)
        raw = self.network(z if weight is None else z.to(weight.dtype), logsnr, *condition)
        expected = (z.shape[0], output_channels(self.output, z.shape[1]), *z.shape[2:])
        if not isinstance(raw, Tensor) or raw.shape != expected or not raw.is_floating_point():
            given = f"{list(raw.shape)} of {raw.dtype}" if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
            raise PdlabError(
                f"{type(self.network).__name__} answers {given}, but output {self.output!r} for {list(z.shape)} "
                f"needs {list(expected)} of floating point"
            )
        return raw.to(z.dtype)
