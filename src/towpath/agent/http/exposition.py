# SPDX-License-Identifier: Apache-2.0
"""Metrics as text, kept compressed.

prometheus_client's own encoder takes 20 us a sample, most of it for what is the same at every
scrape, and holds them all at once: a family of thousands of samples comes as lines instead, some
at a time. A hundred thousand samples are 11 MB of text, and half of one compressed.
"""

from __future__ import annotations

import zlib
from itertools import islice
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_GZIP = 16 + zlib.MAX_WBITS
_FAST = 1
_PIECE = 1 << 16
_AT_ONCE = 1000  # samples whose text is there at one time


class Ready(Metric):
    """A family whose samples are text.

    Args:
        name: Without ``_total``.
        documentation: What is counted.
        typ: counter or gauge.
        lines: Its samples, any number in each text; each sample ends with a newline. They are
            taken once.
    """

    def __init__(self, name: str, documentation: str, typ: str, lines: Iterable[str]) -> None:
        super().__init__(name, documentation, typ)
        self.lines = lines


def ready_counter(name: str, meaning: str, labels: Iterable[str], numbers: Iterable[int]) -> Metric:
    """A counter by columns; ``labels``: in braces, with a space behind."""
    return Ready(name, meaning, "counter", _lines(f"{name}_total", labels, numbers))


def ready_gauge(name: str, meaning: str, labels: Iterable[str], numbers: Iterable[int]) -> Metric:
    """The same of a gauge."""
    return Ready(name, meaning, "gauge", _lines(name, labels, numbers))


def _lines(name: str, labels: Iterable[str], numbers: Iterable[int]) -> Iterator[str]:
    samples = zip(labels, numbers, strict=True)
    while some := [f"{name}{label}{number}.0\n" for label, number in islice(samples, _AT_ONCE)]:
        yield "".join(some)


def escaped(text: str) -> str:
    """A label's value as it stands between quotes."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Rendering:
    """All metrics of one moment, for any number of readers.

    Attributes:
        size: Bytes of text.
        packed: Them in gzip's format, in pieces.
    """

    def __init__(self, families: Iterable[Metric]) -> None:
        packer = zlib.compressobj(_FAST, zlib.DEFLATED, _GZIP)
        packed, self.size = [], 0
        for piece in _encoded(families):
            self.size += len(piece)
            packed.append(packer.compress(piece))
        packed.append(packer.flush())
        self.packed: Sequence[bytes] = tuple(filter(None, packed))

    def text(self) -> Iterator[bytes]:
        """The text in small pieces."""
        unpacker = zlib.decompressobj(_GZIP)
        for piece in self.packed:
            rest = piece
            while rest:
                yield unpacker.decompress(rest, _PIECE)
                rest = unpacker.unconsumed_tail
        yield unpacker.flush()


def _encoded(families: Iterable[Metric]) -> Iterator[bytes]:
    for family in families:
        if isinstance(family, Ready):
            # What the library writes for a family that has no samples.
            yield _by_the_library(Metric(family.name, family.documentation, family.type))
            for lines in family.lines:
                yield lines.encode()
        else:
            yield _by_the_library(family)


class _One(Collector):
    """One family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """It."""
        return (self._family,)


def _by_the_library(family: Metric) -> bytes:
    one = CollectorRegistry(auto_describe=False)
    one.register(_One(family))
    return generate_latest(one)
