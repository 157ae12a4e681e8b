"""One queue for everything that takes long: one worker, a bounded number that wait, and stopping that stops.

Work is a function of `show`: it computes in the worker's thread and calls `show(frame)` often, with what there is
to see so far. Once it is to stop, that call does not return, so the work ends there, and only then is its place
given to the next. Who asked for it reads the newest frame when ready: a slow reader skips frames, and never holds
the worker up.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from pdlab.errors import PdlabError

Show = Callable[[Any], None]
Work = Callable[[Show], None]

_TICK = 0.03  # seconds between two looks of a reader
_PATIENCE, _PAUSE = 2.0, 0.2  # seconds that `clear` waits for a reader, and for the frame that it took


@dataclass(frozen=True)
class Waiting:
    """Not begun: `position` 1 is next."""

    position: int


@dataclass(frozen=True)
class Cancelled:
    """The work was stopped; nothing of it goes on."""


class _Stop(BaseException):
    """Raised in the work, past any `except Exception` of it."""


@dataclass(eq=False)
class _Job:
    """One piece of work, who asked for it, and the newest that it has to show."""

    work: Work
    owner: str
    patience: float
    frame: Any = None
    frames: int = 0
    replaced: bool = False
    error: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)  # its reader has taken the last frame
    read: float = field(default_factory=time.monotonic)

    def show(self, frame: Any) -> None:
        """Publish `frame` (None shows nothing new); does not return once the job is to stop."""
        if time.monotonic() - self.read > self.patience:
            self.stop.set()
        if self.stop.is_set():
            raise _Stop
        if frame is not None:
            self.frame = frame
            self.frames += 1


class Compute:
    """The queue. `most` may wait beside the one that is computed.

    Work whose reader has not looked for `patience` seconds (its page was closed) is stopped.
    """

    def __init__(self, most: int = 32, patience: float = 10.0) -> None:
        self.most, self.patience = most, patience
        self._jobs: list[_Job] = []  # the first one is being computed
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, daemon=True, name="compute").start()

    async def run(self, work: Work, owner: str) -> AsyncIterator[Any]:
        """Yields `Waiting`, then the frames of `work`, then `Cancelled` if it was. Raises what the work raises.

        An owner has one piece of work at a time: a new one stops the one before, which then has nothing more to
        say. Closing this iterator stops it.
        Raises PdlabError at once when too many wait.
        """
        job = self._enter(work, owner)
        seen, position = 0, 0
        try:
            while not job.ended.is_set():
                job.read = time.monotonic()
                if job.replaced:
                    pass
                elif job.frames > seen:
                    seen = job.frames
                    yield job.frame
                elif (now := self._position(job)) != position and now > 0:
                    position = now
                    yield Waiting(now)
                await asyncio.sleep(_TICK)
            if job.error is not None:
                raise job.error
            if job.frames > seen and not job.replaced:
                yield job.frame
            if job.stop.is_set() and not job.replaced:
                yield Cancelled()
        finally:
            self._stop([job])
            job.left.set()

    def stop(self, owner: str, replaced: bool = False) -> int:
        """Stop all work of `owner`; returns how many pieces. Takes effect when they next show something.

        What is `replaced` shows nothing more, not even that it was stopped: something else stands in its place.
        """
        with self._changed:
            jobs = [job for job in self._jobs if job.owner == owner and not job.stop.is_set()]
            for job in jobs:
                job.replaced = replaced
        self._stop(jobs)
        return len(jobs)

    def clear(self, owner: str) -> None:
        """Stop all work of `owner`, which shows nothing more, and wait until its last frame is on its way.

        Frames come to a page by another way than what is returned to it, and may be later: hence the pause.
        """
        with self._changed:
            jobs = [job for job in self._jobs if job.owner == owner]
        if self.stop(owner, replaced=True):
            for job in jobs:
                job.left.wait(_PATIENCE)
            time.sleep(_PAUSE)

    @property
    def load(self) -> int:
        """How many pieces of work wait or are computed."""
        with self._changed:
            return len(self._jobs)

    def _enter(self, work: Work, owner: str) -> _Job:
        job = _Job(work, owner, self.patience)
        with self._changed:
            self.stop(owner, replaced=True)
            waiting = len(self._jobs) - 1
            if waiting >= self.most:
                raise PdlabError(f"busy: {waiting} are waiting before you, and no more can; try again in a minute")
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def _stop(self, jobs: list[_Job]) -> None:
        with self._changed:
            for job in jobs:
                job.stop.set()
                if job in self._jobs[1:]:  # not begun: it leaves at once
                    self._jobs.remove(job)
                    job.ended.set()

    def _position(self, job: _Job) -> int:
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                job = self._jobs[0]
            try:
                job.show(None)
                job.work(job.show)
            except _Stop:
                pass
            except BaseException as error:  # whatever the work raises is its reader's
                job.error = error
            with self._changed:
                self._jobs.remove(job)
            job.ended.set()
