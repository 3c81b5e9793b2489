"""Peers in Python: what its runtimes' own switches cost, in the interpreter that measures."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

from fpstate.errors import UnsupportedHere

SWITCHES: Final = 20_000
_IN_A_TURN: Final = 16
"""Switches in one turn of a loop, so that the loop itself does not show: eight calls there and back."""


@dataclass(frozen=True)
class RuntimePeer:
    """What makes a sampler, and what the switch keeps of the floating-point state."""

    name: str
    keeps: str
    make: Callable[[], Callable[[], float]]


def per_switch(work: Callable[[int], object], switches: int) -> float:
    """Return the nanoseconds of one switch, where ``work(turns)`` does 16 in each turn."""
    turns = switches // (_IN_A_TURN)
    start = time.thread_time_ns()
    work(turns)
    return (time.thread_time_ns() - start) / (turns * _IN_A_TURN)


def _module(name: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UnsupportedHere(f"needs {name}: pip install 'fpstate[bench]'") from None


def greenlet_switch() -> Callable[[], float]:
    """Two greenlets that switch to each other."""
    greenlet = _module("greenlet")
    main = greenlet.getcurrent()

    def body() -> None:
        back = main.switch
        while True:
            back()

    other = greenlet.greenlet(body)

    def work(turns: int) -> None:
        switch = other.switch
        for _ in range(turns):
            switch()
            switch()
            switch()
            switch()
            switch()
            switch()
            switch()
            switch()

    return lambda: per_switch(work, SWITCHES)


def generator_send() -> Callable[[], float]:
    """A generator that is sent to: there and back."""

    def body() -> Generator[None, None, None]:
        while True:
            yield

    other = body()
    next(other)

    def work(turns: int) -> None:
        send = other.send
        for _ in range(turns):
            send(None)
            send(None)
            send(None)
            send(None)
            send(None)
            send(None)
            send(None)
            send(None)

    return lambda: per_switch(work, SWITCHES)


def asyncio_sleep() -> Callable[[], float]:
    """Two tasks that yield to each other by ``asyncio.sleep(0)``."""

    async def task(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def both(turns: int) -> float:
        start = time.thread_time_ns()
        await asyncio.gather(task(turns), task(turns))
        return (time.thread_time_ns() - start) / (2 * turns)

    return lambda: asyncio.run(both(SWITCHES // 20))


def gevent_sleep() -> Callable[[], float]:
    """Two greenlets of gevent that yield to each other by ``gevent.sleep(0)``."""
    gevent = _module("gevent")

    def task(turns: int) -> None:
        for _ in range(turns):
            gevent.sleep(0)

    def sample() -> float:
        turns = SWITCHES // 20
        start = time.thread_time_ns()
        gevent.joinall([gevent.spawn(task, turns), gevent.spawn(task, turns)])
        return (time.thread_time_ns() - start) / (2 * turns)

    return sample


RUNTIME_PEERS: Final = (
    RuntimePeer("generator send", "none", generator_send),
    RuntimePeer("greenlet", "MXCSR, FCW", greenlet_switch),
    RuntimePeer("gevent.sleep(0)", "MXCSR, FCW", gevent_sleep),
    RuntimePeer("asyncio.sleep(0)", "none", asyncio_sleep),
)
