# SPDX-License-Identifier: Apache-2.0
"""A load balancer, clients, a router and backends in network namespaces.

::

    tp-client ---- tp-router ---- tp-lb          the VIPs are routed to tp-lb,
                      |  |                       which wraps and sends back
                      |  +------- tp-be1         out of the same device (XDP_TX);
                      +---------- tp-be2 ...     backends answer tp-client directly

Every link is a veth pair with addresses of the documentation ranges, IPv4 and
IPv6. Nothing is connected to the machine's own network.
"""

from __future__ import annotations

from towpath.lab.errors import LabError
from towpath.lab.lab import Lab
from towpath.lab.topology import Topology

__all__ = ["Lab", "LabError", "Topology"]
