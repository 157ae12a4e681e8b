"""The queue: order, bound, stopping, and errors, without Gradio."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pdlab.app.compute import Cancelled, Compute, Show, Waiting
from pdlab.errors import PdlabError


def counting(n: int):
    def work(show: Show) -> None:
        for k in range(n):
            show(k)

    return work


async def collect(compute: Compute, work: Any, owner: str = "a") -> list[Any]:
    return [frame async for frame in compute.run(work, owner)]


class Gate:
    """Work that holds the worker until it is opened, so that tests do not depend on a clock."""

    def __init__(self) -> None:
        self.begun, self.open, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, show: Show) -> None:
        try:
            show("begun")
            self.begun.set()
            while not self.open.wait(0.005):
                show(None)
            show("through")
        finally:
            self.ended.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


async def load(compute: Compute, n: int) -> None:
    while compute.load < n:
        await asyncio.sleep(0.005)


def test_the_last_frame_always_arrives() -> None:
    frames = asyncio.run(collect(Compute(), counting(1000)))
    assert frames[-1] == 999
    numbers = [frame for frame in frames if not isinstance(frame, Waiting)]
    assert numbers == sorted(set(numbers))


def test_work_is_done_in_turn_and_says_how_many_are_before(gate: Gate) -> None:
    compute = Compute()

    async def three() -> tuple[list[Any], ...]:
        first = asyncio.create_task(collect(compute, gate, "a"))
        await asyncio.to_thread(gate.begun.wait)
        second = asyncio.create_task(collect(compute, counting(1), "b"))
        await load(compute, 2)
        third = asyncio.create_task(collect(compute, counting(1), "c"))
        await load(compute, 3)
        await asyncio.sleep(0.1)
        gate.open.set()
        return await first, await second, await third

    first, second, third = asyncio.run(three())
    assert first[-1] == "through"
    assert second[0] == Waiting(1)
    assert third[0] == Waiting(2)
    assert second[-1] == third[-1] == 0
    assert compute.load == 0


def test_no_more_may_wait_than_the_bound(gate: Gate) -> None:
    compute = Compute(most=1)

    async def crowd() -> None:
        tasks = [asyncio.create_task(collect(compute, gate, "a"))]
        await asyncio.to_thread(gate.begun.wait)
        tasks.append(asyncio.create_task(collect(compute, counting(1), "b")))
        await load(compute, 2)
        with pytest.raises(PdlabError, match="busy: 1 are waiting"):
            await collect(compute, counting(1), "c")
        gate.open.set()
        await asyncio.gather(*tasks)

    asyncio.run(crowd())


def test_stopping_ends_the_work_itself_and_only_the_owners(gate: Gate) -> None:
    compute = Compute()

    async def stop() -> tuple[list[Any], list[Any]]:
        running = asyncio.create_task(collect(compute, gate, "a"))
        await asyncio.to_thread(gate.begun.wait)
        other = asyncio.create_task(collect(compute, counting(3), "b"))
        await load(compute, 2)
        assert compute.stop("a") == 1
        return await running, await other

    stopped, other = asyncio.run(stop())
    assert stopped[-1] == Cancelled()
    assert gate.ended.is_set()
    assert not gate.open.is_set()
    assert other[-1] == 2
    assert compute.stop("a") == 0


def test_new_work_of_an_owner_replaces_the_old(gate: Gate) -> None:
    compute = Compute()

    async def twice() -> tuple[list[Any], list[Any]]:
        first = asyncio.create_task(collect(compute, gate, "a"))
        await asyncio.to_thread(gate.begun.wait)
        return await collect(compute, counting(2), "a"), await first

    second, first = asyncio.run(twice())
    assert Cancelled() not in first  # it would be said of the new work, which goes on
    assert second[-1] == 1


def test_what_something_else_stands_in_place_of_says_nothing_more(gate: Gate) -> None:
    compute = Compute()

    async def changed() -> list[Any]:
        running = asyncio.create_task(collect(compute, gate, "a"))
        await asyncio.to_thread(gate.begun.wait)
        assert compute.stop("a", replaced=True) == 1
        return await running

    assert Cancelled() not in asyncio.run(changed())
    assert gate.ended.is_set()
    assert compute.load == 0


def test_clearing_returns_when_the_reader_has_taken_the_last_frame(gate: Gate) -> None:
    compute = Compute()

    async def changed() -> list[Any]:
        running = asyncio.create_task(collect(compute, gate, "a"))
        await asyncio.to_thread(gate.begun.wait)
        await asyncio.to_thread(compute.clear, "a")
        assert running.done()
        return await running

    assert Cancelled() not in asyncio.run(changed())


def test_a_closed_reader_stops_the_work(gate: Gate) -> None:
    compute = Compute()

    async def leave() -> None:
        task = asyncio.create_task(collect(compute, gate, "a"))
        await asyncio.to_thread(gate.begun.wait)
        task.cancel()
        await asyncio.to_thread(gate.ended.wait, 5)

    asyncio.run(leave())
    assert gate.ended.is_set()
    assert not gate.open.is_set()


def test_a_reader_that_vanishes_is_not_computed_for(gate: Gate) -> None:
    compute = Compute(patience=0.05)

    async def vanish() -> None:
        reader = compute.run(gate, "a")
        assert await anext(reader) == "begun"  # and then never again
        await asyncio.to_thread(gate.ended.wait, 5)
        assert gate.ended.is_set()
        assert not gate.open.is_set()

    asyncio.run(vanish())


def test_an_error_reaches_its_reader_and_the_queue_goes_on() -> None:
    compute = Compute()

    def broken(show: Show) -> None:
        raise PdlabError("there is no checkpoint")

    with pytest.raises(PdlabError, match="no checkpoint"):
        asyncio.run(collect(compute, broken))
    assert asyncio.run(collect(compute, counting(2)))[-1] == 1
