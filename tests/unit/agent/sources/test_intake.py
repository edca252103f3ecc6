# SPDX-License-Identifier: Apache-2.0
"""What a source hands in is in force, or refused and remembered."""

from __future__ import annotations

import asyncio
import errno

import pytest

from towpath.agent.errors import AgentError, ConflictError, InvalidError
from towpath.agent.sources import intake as source_intake
from towpath.agent.sources.intake import Intake
from towpath.kernel.errors import KernelError
from towpath.model import Problem


class Desired:
    """What contents must agree with."""

    def __init__(self) -> None:
        self.now: object = object()
        self.error: Exception | None = None

    async def take(self, content: str) -> None:
        """Take a content, or raise the error."""
        if self.error is not None:
            raise self.error
        self.now = content

    def objects(self) -> tuple[object, ...]:
        """What there is."""
        return (self.now,)


@pytest.fixture
def desired() -> Desired:
    """Nothing yet."""
    return Desired()


@pytest.fixture
def intake(desired: Desired) -> Intake[str]:
    """Of a source that has handed in something."""
    made = Intake("the source", desired.take, desired.objects)
    assert made.status.accepted is None
    assert asyncio.run(made.offer("first"))
    return made


def test_a_refused_content_is_remembered_until_one_is_accepted(
    desired: Desired, intake: Intake[str]
) -> None:
    """Beside what is still in force."""
    in_force = intake.status.accepted
    assert in_force is not None
    problem = Problem("can't change", "devices")
    desired.error = InvalidError([problem])
    assert not asyncio.run(intake.offer("second"))
    refused = intake.status
    assert refused.problems == (problem,)
    assert refused.accepted == in_force
    assert refused.refused is not None
    desired.error = None
    assert asyncio.run(intake.offer("third"))
    accepted = intake.status
    assert accepted.problems == ()
    assert accepted.refused is None


def test_a_contradiction_may_be_gone_when_what_is_desired_has_changed(
    desired: Desired, intake: Intake[str]
) -> None:
    """Only then is it worth trying again."""
    desired.error = ConflictError("name")
    asyncio.run(intake.offer("second"))
    assert not intake.may_fit_now()
    desired.now = "something else"
    assert intake.may_fit_now()


def test_what_makes_no_sense_is_not_tried_again(desired: Desired, intake: Intake[str]) -> None:
    """Whatever is desired."""
    desired.error = InvalidError("port")
    asyncio.run(intake.offer("second"))
    desired.now = "something else"
    assert not intake.may_fit_now()


@pytest.mark.parametrize(
    "error", [KernelError("create map vips", errno.EMFILE), AgentError("the database is locked")]
)
def test_what_the_machine_refuses_is_tried_again(
    desired: Desired,
    intake: Intake[str],
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The content may be right: that is told as trouble, and logged once."""
    monkeypatch.setattr(source_intake, "AGAIN_SECONDS", 0.0)
    assert intake.trouble is None
    desired.error = error
    for _ in range(3):
        assert not asyncio.run(intake.offer("second"))
        assert intake.may_fit_now()
    assert caplog.text.count(str(error)) == 1
    assert str(intake.trouble).startswith("the source could not be put into force")
    assert str(error) in str(intake.trouble)
    desired.error = InvalidError("port")
    asyncio.run(intake.offer("third"))
    assert intake.trouble is None
    assert not intake.may_fit_now()


def test_what_the_machine_refuses_waits_a_while(desired: Desired, intake: Intake[str]) -> None:
    """It is not tried again at each look."""
    desired.error = KernelError("create map vips", errno.EMFILE)
    asyncio.run(intake.offer("second"))
    assert not intake.may_fit_now()


def test_a_fault_is_no_refusal(desired: Desired, intake: Intake[str]) -> None:
    """It goes on to whoever watches over the task."""
    desired.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(intake.offer("second"))
