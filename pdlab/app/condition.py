"""What is asked of a model beside its noise: a class, or all of them in turn, and how far beyond it to go."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdlab.app import state
from pdlab.app.ladders import NOISES, ShownLadder
from pdlab.errors import PdlabError

ALL = "all in turn"


@dataclass(frozen=True)
class Condition:
    """A class by its number, None for all in turn (noise k is of class k modulo their number), and a guidance."""

    label: int | None = None
    guidance: float = 0.0

    @classmethod
    def of(cls, ladder: ShownLadder, given: Mapping[str, Any], most: float | None = None) -> "Condition":
        """From a link's or the controls' values; `most` is the largest guidance, by default the ladder's.

        Raises PdlabError for a class that the ladder does not have.
        """
        asked, label = given.get("class"), None
        if ladder.classes and asked not in (None, "", ALL):
            if asked not in ladder.classes:
                raise PdlabError(f"there is no class {asked!s:.60}: there are {', '.join(ladder.classes)}")
            label = ladder.classes.index(str(asked))
        most = ladder.most if most is None else most
        return cls(label, round(state.number(given.get("guidance"), 0.0, most, min(ladder.shown, most)), 2))

    def arguments(self, ladder: ShownLadder, first: int, n: int, device: torch.device) -> dict[str, Any]:
        """What a sampler is given for the `n` noises from number `first` on, which begin again after the last."""
        if not ladder.classes:
            return {}
        return {"labels": self._labels(ladder, first, n).to(device), "guidance": self.guidance or None}

    def code(self, ladder: ShownLadder, first: int, n: int) -> tuple[str, str]:
        """The same as Python: a line that is to stand before, and what is added to the call."""
        if not ladder.classes:
            return "", ""
        guidance = f", guidance={self.guidance:g}" if self.guidance else ""
        if self.label is not None:
            labels = f"torch.full(({n},), {self.label})  # {ladder.classes[self.label]}"
        else:
            again = f" % {NOISES}" if first + n > NOISES else ""
            labels = f"torch.arange({first}, {first + n}){again} % {len(ladder.classes)}  # all classes in turn"
        return f"labels = {labels}\n", f", labels=labels{guidance}"

    def names(self, ladder: ShownLadder, first: int, n: int) -> list[str]:
        """The class of each of these noises; none for a ladder without."""
        return [ladder.classes[k] for k in self._labels(ladder, first, n).tolist()] if ladder.classes else []

    def among(self, ladder: ShownLadder, first: int, n: int) -> str:
        """ " of horse", " of cat, deer, dog in turn": for a text that says what `n` samples are."""
        names = list(dict.fromkeys(self.names(ladder, first, n)))
        return f" of {', '.join(names)}" + (" in turn" if len(names) > 1 else "") if names else ""

    def text(self, ladder: ShownLadder) -> str:
        """ "class horse, guidance 1.5"; empty for a ladder without classes."""
        if not ladder.classes:
            return ""
        of = "all classes in turn" if self.label is None else f"class {ladder.classes[self.label]}"
        return of + (f", guidance {self.guidance:g}" if ladder.takes(None) or ladder.most else "")

    def _labels(self, ladder: ShownLadder, first: int, n: int) -> Tensor:
        if self.label is not None:
            return torch.full((n,), self.label)
        return torch.arange(first, first + n) % NOISES % len(ladder.classes)


#: Nothing beyond the noise: what a ladder without classes is asked.
PLAIN = Condition()
#: What guidance costs, wherever network calls are counted.
TWICE = "Guided, a step of an undistilled model takes two network calls; of a distilled one, one."
