# SPDX-License-Identifier: Apache-2.0
"""What libbpf and the verifier say, in one line."""

from __future__ import annotations

import pytest

from towpath.kernel.bpf import verifier

OLD = """\
0: R1=ctx(off=0,imm=0) R10=fp0
; void *data = (void *)(long)ctx->data;
0: (61) r1 = *(u32 *)(r1 +0)          ; R1_w=pkt(off=0,r=0,imm=0)
; return *(int *)data;
1: (61) r0 = *(u32 *)(r1 +0)
invalid access to packet, off=0 size=4, R1(id=0,off=0,r=0)
R1 offset is outside of the packet
verification time 62 usec
stack depth 0
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
UNBOUNDED = "R1 unbounded memory access, make sure to bounds check any such access"
NEW = f"""\
0: R1=ctx() R10=fp0
; return table[ctx->ingress_ifindex & 15]; @ refused.c:12
5: (61) r0 = *(u32 *)(r1 +0)
{UNBOUNDED}
processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""


@pytest.mark.parametrize(
    ("log", "summary"),
    [
        (OLD, "R1 offset is outside of the packet (at: return *(int *)data;)"),
        (
            NEW,
            f"{UNBOUNDED} (at: return table[ctx->ingress_ifindex & 15]; @ refused.c:12)",
        ),
        ("unknown func bpf_nothing#999\n", "unknown func bpf_nothing#999"),
        ("\n", "the verifier's log is empty"),
        ("processed 0 insns\n", "the verifier's log is empty"),
    ],
)
def test_summary_is_the_reason_and_its_source_line(log: str, summary: str) -> None:
    """The summary leaves out the verifier's accounts of itself."""
    assert verifier.summarize(log) == summary


def test_refusal_is_found_in_what_libbpf_prints() -> None:
    """Program and log are told apart from the messages around them."""
    printed = [
        "libbpf: prog 'count': BPF program load failed: Permission denied\n",
        f"libbpf: prog 'count': -- BEGIN PROG LOAD LOG --\n{OLD}-- END PROG LOAD LOG --\n",
        "libbpf: prog 'count': failed to load: -13\n",
        "libbpf: failed to load object 'x'\n",
    ]
    refusal = verifier.refusal(printed)
    assert refusal is not None
    assert (refusal.program, refusal.log) == ("count", OLD)
    assert verifier.refusal(printed[:1]) is None


def test_reason_is_the_innermost_complaint() -> None:
    """Retries and the last, general complaint are no reasons."""
    printed = [
        "libbpf: Error in bpf_create_map_xattr(m):Invalid argument(-22). Retrying without BTF.\n",
        "libbpf: map 'm': failed to create: Invalid argument(-22)\n",
        "libbpf: failed to load object 'x'\n",
    ]
    assert verifier.reason(printed) == "map 'm': failed to create: Invalid argument(-22)"
    assert verifier.reason([]) == ""
