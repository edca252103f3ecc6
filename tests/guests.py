# SPDX-License-Identifier: Apache-2.0
"""How much a test does in an emulated guest, which is 16 to 40 times slower than its host."""

from __future__ import annotations

import os

IN_GUEST = bool(os.environ.get("TOWPATH_GUEST"))
"""Whether this is one of the kernel matrix's guests."""

_SHARE = 50
_FEWEST = 100


def examples(on_host: int) -> int:
    """How many examples to try: ``on_host``, or in a guest a fiftieth, but 100 at least.

    The host tries the many. A guest is there to find what its kernel does differently, which shows
    in few.
    """
    return max(_FEWEST, on_host // _SHARE) if IN_GUEST else on_host
