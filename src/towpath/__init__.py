# SPDX-License-Identifier: Apache-2.0
"""Towpath: an XDP layer-4 load balancer, programmed and operated from Python.

Two ways in, imported when first asked for so that ``import towpath`` costs next
to nothing:

- :class:`towpath.LoadBalancer` loads and attaches the datapath in this process;
- :class:`towpath.Client` talks to a running agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.api.client import Client
    from towpath.loadbalancer import LoadBalancer

__all__ = ["Client", "LoadBalancer", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import a public class on first use (PEP 562)."""
    if name == "LoadBalancer":
        from towpath.loadbalancer import LoadBalancer

        return LoadBalancer
    if name == "Client":
        from towpath.api.client import Client

        return Client
    raise AttributeError(f"module 'towpath' has no attribute {name!r}")
