"""A thread that computes for one model what needs no queue of tokens: vectors, and scores of pairs."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeAlias, TypeVar

from luthier.serve.api_error import deadline_passed

T = TypeVar("T")
Tell: TypeAlias = Callable[[int, int], None]
"""Told between two batches how many are done, of how many; it raises where nobody waits any more."""


class _GivenUp(Exception):
    """Nobody waits for the answer any more."""


class OwnThread:
    """One piece of work after the other."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def stop(self) -> None:
        """End the thread after the batch that is computed."""
        self._thread.shutdown(cancel_futures=True)

    async def compute(self, work: Callable[[Tell], T], deadline_seconds: float, advice: str) -> T:
        """What `work` returns; whoever stops to wait ends it at the next batch.

        Raises:
            ApiError: 504: out of time, with the advice; and what `work` raises.
        """
        given_up = Event()

        def tell(_done: int, _all: int) -> None:
            if given_up.is_set():
                raise _GivenUp

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline_seconds):
                return await loop.run_in_executor(self._thread, work, tell)
        except TimeoutError:
            raise deadline_passed(deadline_seconds, advice) from None
        finally:
            given_up.set()
