# SPDX-License-Identifier: Apache-2.0
"""The load balancer as a part of an agent: devices, services, health checks, captures.

`part` is its life, `controller` changes what is `desired` and in the `store`, `observer` reads.
"""

from towpath.agent.lb.part import forget, start

__all__ = ["forget", "start"]
