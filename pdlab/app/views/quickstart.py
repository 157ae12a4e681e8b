"""Without a ladder to show: the offer to make one of digits, and its making."""

from pdlab.app.compute import Show
from pdlab.app.ladders import QUICKSTART, Shelf
from pdlab.quickstart import quickstart
from pdlab.training.log import Log


def offer() -> str:
    """What to do where there is nothing to show."""
    return (
        "<h2>There is no ladder to show yet</h2>"
        "<p>This installation came without trained models. The quickstart trains a teacher of handwritten digits "
        "on this machine, halves its 64 steps to 1 and measures every student: a few minutes on two cores, no "
        f"download. It writes to the folder <code>{QUICKSTART}</code>; stopped, it goes on when started again.</p>"
    )


class _Shown(Log):
    """A log that a browser reads, and through which the run is stopped."""

    def __init__(self, show: Show) -> None:
        super().__init__(quiet=True)
        self._show = show

    def advance(self, stage: str, done: int, total: int, status: str = "") -> None:
        """See Log."""
        self._show((f"{stage}: {done} of {total}  {status}",))


def work(shelf: Shelf, show: Show) -> None:
    """Run the quickstart; shows (text,) on the way, and puts its ladder on the shelf."""
    show(("Reading the digits …",))
    quickstart(QUICKSTART, log=_Shown(show))
    shelf.refresh()
    show(("The ladder of digits is ready; this page loads again to show it.",))
