# SPDX-License-Identifier: Apache-2.0
"""What is closed at the end of a ``with`` statement."""

from __future__ import annotations

from typing import Self


class Closeable:
    """Something with a ``close`` that may be called twice."""

    __slots__ = ()

    def close(self) -> None:
        """Let go of what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
