# SPDX-License-Identifier: Apache-2.0
"""For tests that list sockets: a hardened kernel lets nobody load the programs that do."""

from __future__ import annotations

import pytest

from towpath.datapath.socket.listing import refusal

needs_lists = pytest.mark.skipif(
    refusal() is not None, reason="this kernel allows no programs that list sockets"
)
