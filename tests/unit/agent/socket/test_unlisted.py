# SPDX-License-Identifier: Apache-2.0
"""An agent that can't find stale sockets."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from towpath.agent.socket.part import Sockets
from towpath.kernel.errors import KernelError, VerifierError

if TYPE_CHECKING:
    import pytest

REFUSED = VerifierError("load socket_list.bpf.o", errno.EPERM, "the verifier's log is empty", "")
FAILED = KernelError("read sockets", errno.ENOMEM)


def looked(*errors: KernelError) -> Any:
    """The part of an agent, after a look for each of these."""
    left = list(errors)

    def search(**_: bool) -> None:
        raise left.pop(0)

    sockets = SimpleNamespace(search=search, stale=SimpleNamespace(left=0), troubles=())
    part = SimpleNamespace(
        _sockets=sockets,
        _section=SimpleNamespace(stale="udp"),
        _follower=SimpleNamespace(trouble=None),
        _told="",
        _refused=False,
    )
    while left:
        asyncio.run(Sockets._look(cast("Sockets", part)))
    return part


def trouble(part: Any) -> str | None:
    """What keeps it from being ready."""
    return cast("property", Sockets.trouble).fget(part)  # type: ignore[misc,no-any-return]


def test_a_kernel_that_allows_no_such_programs_is_no_trouble(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It will not tomorrow either, and a node has to get ready. It is logged once."""
    part = looked(REFUSED, REFUSED)
    assert (trouble(part), part._refused) == (None, True)
    assert [each.message for each in caplog.records] == [f"stale sockets can't be found: {REFUSED}"]


def test_what_else_fails_is(caplog: pytest.LogCaptureFixture) -> None:
    """Each in turn."""
    part = looked(REFUSED, FAILED)
    assert trouble(part) == f"stale sockets can't be found: {FAILED}"
    assert len(caplog.records) == 2
