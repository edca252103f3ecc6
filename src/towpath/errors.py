# SPDX-License-Identifier: Apache-2.0
"""Every error that a caller may meet, below one root.

    try:
        lb.remove_backend("web", "192.0.2.11")
    except towpath.NotFoundError as error:
        print(error)  # what isn't there, and what there is

``except towpath.Error`` catches all of them, and nothing that Python itself raises. What a
class says beyond its root stands with it: ``ConfigError`` is a ``ValueError`` too, as
``NotFoundError`` is a ``KeyError``. The classes of other modules are imported when they are
first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath.agent.errors import AgentError
    from towpath.api.errors import ApiError, ClientError, UnreachableError
    from towpath.bench.errors import BenchError
    from towpath.datapath.decap.addresses import DecapError
    from towpath.datapath.errors import CapacityError, DatapathError
    from towpath.kernel.bpf.pcap import ExpressionError
    from towpath.kernel.errors import KernelError, LayoutError, VerifierError
    from towpath.lab.errors import LabError
    from towpath.model.kinds import FieldError
    from towpath.model.problems import ConfigError
    from towpath.wildcard.errors import (
        FullError,
        NoSuchRuleError,
        TooComplexError,
        WildcardError,
    )

__all__ = [
    "AgentError",
    "ApiError",
    "BenchError",
    "CapacityError",
    "ClientError",
    "ConfigError",
    "ConflictError",
    "DatapathError",
    "DecapError",
    "Error",
    "ExpressionError",
    "FieldError",
    "FullError",
    "KernelError",
    "LabError",
    "LayoutError",
    "NoSuchRuleError",
    "NotFoundError",
    "TooComplexError",
    "UnreachableError",
    "VerifierError",
    "WildcardError",
]


class Error(Exception):
    """Whatever Towpath refuses or can't do. The message is for people."""


class NotFoundError(Error, KeyError):
    """There is no service, backend or rule of that name. The message says what there is."""

    # KeyError would show the message as a literal, in quotes.
    __str__ = Exception.__str__


class ConflictError(Error):
    """What was asked contradicts what is there, or has no room beside it. Nothing was changed."""


_ELSEWHERE = {
    "AgentError": "towpath.agent.errors",
    "ApiError": "towpath.api.errors",
    "BenchError": "towpath.bench.errors",
    "CapacityError": "towpath.datapath.errors",
    "ClientError": "towpath.api.errors",
    "ConfigError": "towpath.model.problems",
    "DatapathError": "towpath.datapath.errors",
    "DecapError": "towpath.datapath.decap.addresses",
    "ExpressionError": "towpath.kernel.bpf.pcap",
    "FieldError": "towpath.model.kinds",
    "FullError": "towpath.wildcard.errors",
    "KernelError": "towpath.kernel.errors",
    "LabError": "towpath.lab.errors",
    "LayoutError": "towpath.kernel.errors",
    "NoSuchRuleError": "towpath.wildcard.errors",
    "TooComplexError": "towpath.wildcard.errors",
    "UnreachableError": "towpath.api.errors",
    "VerifierError": "towpath.kernel.errors",
    "WildcardError": "towpath.wildcard.errors",
}


def __getattr__(name: str) -> object:
    """Import a class on first use (PEP 562)."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'towpath.errors' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE[name]), name)
