# SPDX-License-Identifier: Apache-2.0
"""What libbpf and the verifier say when a load fails, made short."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LOG = re.compile(
    r"prog '(?P<program>[^']*)': -- BEGIN PROG LOAD LOG --\n(?P<log>.*)-- END PROG LOAD LOG --",
    re.DOTALL,
)
# Lines at the end of a log that tell of the verifier's own work.
_STATISTICS = ("processed ", "verification time ", "stack depth ", "mark_read_log ")
_PROCESSED = re.compile(r"^processed (\d+) insns", re.MULTILINE)
# BPF_LOG_STATS, since 5.2: the lines above and nothing else.
STATISTICS_LEVEL = 4
# A few lines in the end; on its way the verifier writes far more than it leaves.
STATISTICS_BYTES = 1 << 20
_SOURCE = re.compile(r"^;\s*(?P<source>\S.*)")
# The outermost complaint, and a retry that libbpf makes: never the reason.
_NOT_A_REASON = re.compile(r"^failed to load object|Retrying without BTF")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The program that was refused, why in one line, and the whole log."""

    program: str
    summary: str
    log: str


def processed(log: str) -> int:
    """How many instructions the verifier says it walked through, 0 if it doesn't say."""
    found = _PROCESSED.search(log)
    return int(found[1]) if found else 0


def refusal(printed: list[str]) -> Refusal | None:
    """The verifier's refusal in what libbpf printed, None when that wasn't what failed."""
    found = _LOG.search("".join(printed))
    if found is None:
        return None
    log = found["log"]
    return Refusal(found["program"], summarize(log), log)


def summarize(log: str) -> str:
    """The last thing a verifier log says about the program, and the source line it says it of."""
    lines = [line for line in log.splitlines() if line.strip()]
    while lines and lines[-1].startswith(_STATISTICS):
        lines.pop()
    if not lines:
        return "the verifier's log is empty"
    reason = lines[-1].strip()
    for line in reversed(lines[:-1]):
        if source := _SOURCE.match(line):
            return f"{reason} (at: {source['source']})"
    return reason


def reason(printed: list[str]) -> str:
    """The line in which libbpf says why something other than a program failed, "" for none."""
    lines = [line.removeprefix("libbpf: ").strip() for line in printed]
    reasons = [line for line in lines if line and not _NOT_A_REASON.search(line)]
    return reasons[-1] if reasons else ""
