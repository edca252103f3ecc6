# SPDX-License-Identifier: Apache-2.0
"""What a benchmark reports to the person who runs it."""

from __future__ import annotations

from towpath.errors import Error


class BenchError(Error):
    """The program doesn't do what is to be timed; the message says with which packet."""
