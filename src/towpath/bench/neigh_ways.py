# SPDX-License-Identifier: Apache-2.0
"""Names of what ``towpath bench neigh`` does and compares, for the command's help."""

MANAGED, PERMANENT, KERNEL = "managed", "permanent", "kernel"
WAYS = (MANAGED, PERMANENT, KERNEL)
"""Managed neighbours; entries that somebody has written for good; the kernel's own, by packets that
are handed to it."""

SCENARIOS = (
    "backend-mac-change",
    "backend-mac-change-checked",
    "gateway-mac-change",
    "carrier-flap-same-mac",
    "carrier-flap-other-mac",
    "carrier-100-flaps",
    "route-change",
    "route-change-agent-killed",
)

HOPS, SECONDS = 1000, 60.0
"""Next hops that are kept resolved, and for how long, to see what it costs."""

LIMIT_SECONDS = 90.0
"""After so long it is taken not to heal."""
