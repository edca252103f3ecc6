# SPDX-License-Identifier: Apache-2.0
"""From answers to verdicts: pure, whatever the answers come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.doctor.capability import Answer, Capability, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from towpath.doctor.rules import Rule
    from towpath.kernel.bpf.attached import AttachedProgram


def judge(rule: Rule, ask: Callable[[str], Answer]) -> Capability:
    """Try the ways of a capability, best first; a way after one that works isn't asked about.

    Behind a way that could not be probed none is tried: whatever they say, the best may work.
    """
    refused: dict[str, None] = {}  # in order, each once
    for way in rule.ways:
        answer = ask(way.probe)
        if answer.works is None:
            return _capability(rule, "unknown", answer.found, rule.loses)
        if answer.works:
            if way is rule.ways[0]:
                return _capability(rule, "available", answer.found, "", answer.attached)
            found = _join(answer.found, refused)
            return _capability(rule, "fallback", found, way.loses, answer.attached)
        refused[answer.found] = None
    return _capability(rule, "missing", _join("", refused), rule.loses)


def _join(found: str, refused: dict[str, None]) -> str:
    """What there is, and why nothing better."""
    why = "; ".join(reason for reason in refused if reason)
    return f"{found} ({why})" if found and why else found or why


def _capability(
    rule: Rule, state: State, found: str, loses: str, attached: tuple[AttachedProgram, ...] = ()
) -> Capability:
    return Capability(rule.name, state, found, rule.needed_by, loses, rule.required, attached)
