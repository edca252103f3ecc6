# SPDX-License-Identifier: Apache-2.0
"""The one thread that changes anything."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Args = ParamSpec("Args")
Result = TypeVar("Result")


class Writer:
    """Runs calls one after another, in the order they came, beside the event loop.

    A thread rather than a lock: the loop goes on answering reads while a large
    apply runs, and changes take effect in the order they were asked for.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")

    async def run(
        self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> Result:
        """Run a call and wait for its result without holding up the loop.

        A caller that goes away does not cut a change short.
        """
        future = self._thread.submit(call, *args, **kwargs)
        return await asyncio.shield(asyncio.wrap_future(future))

    def call(self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """The same from another thread, which waits."""
        return self._thread.submit(call, *args, **kwargs).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is under way, and take no more. Twice is once."""
        self._thread.shutdown()
