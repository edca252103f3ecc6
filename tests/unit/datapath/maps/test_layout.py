# SPDX-License-Identifier: Apache-2.0
"""The sizes of the kernel's tables follow from the limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.datapath.harness_program import BTF, LINE

from towpath.datapath.maps.layout import Layout
from towpath.model import Limits

WAYS = int(BTF.enum("flow_limits")["FLOW_WAYS"])
FRAGMENT_WAYS = int(BTF.enum("fragment_limits")["FRAGMENT_WAYS"])
CLIENTS = int(BTF.enum("client_limits")["CLIENT_WAYS"])

limits = st.builds(
    Limits,
    services=st.integers(1, 1 << 20),
    backends=st.integers(1, (1 << 20) - 1),
    flows=st.integers(1024, 1 << 27),
    fragments=st.integers(128, 1 << 24),
    clients=st.integers(1024, 1 << 27),
    sources=st.integers(1, 1 << 24),
    table_slots=st.integers(251, 1 << 28),
)


def layout(wanted: Limits, cpus: int = 2) -> Layout:
    """The layout with the program's own constants."""
    return Layout.of(
        wanted,
        cpus,
        flow_ways=WAYS,
        maglev_line=LINE,
        client_ways=CLIENTS,
        fragment_ways=FRAGMENT_WAYS,
    )


@given(limits, st.integers(1, 512))
def test_there_is_room_for_what_the_limits_promise(wanted: Limits, cpus: int) -> None:
    """And for index 0, which is no service's and no backend's."""
    entries = layout(wanted, cpus).entries
    assert entries["services"] == wanted.services + 1
    assert entries["backends"] == wanted.backends + 1
    assert entries["flows"] * WAYS >= wanted.flows
    assert entries["fragments"] * FRAGMENT_WAYS >= wanted.fragments
    assert entries["clients"] * CLIENTS >= wanted.clients
    assert entries["sources"] == wanted.sources
    assert wanted.table_slots <= entries["maglev"] * LINE < wanted.table_slots + LINE
    assert entries["backend_cpus"] == entries["backends"] * cpus
    assert entries["backend_flows"] == entries["backend_cpus"]
    assert entries["service_cpus"] == entries["services"] * cpus
    assert entries["verdict_cpus"] == entries["flow_cpus"] == cpus


@given(limits)
def test_a_look_up_needs_no_division(wanted: Limits) -> None:
    """Hashes are masked: sizes are powers of two, and no larger than they need be."""
    made = layout(wanted)
    for name, mask, need in (
        ("vips", "vip_mask", wanted.services * 16),
        ("flows", "flow_mask", -(-wanted.flows // WAYS)),
        ("fragments", "fragment_mask", -(-wanted.fragments // FRAGMENT_WAYS)),
        ("clients", "client_mask", -(-wanted.clients // CLIENTS)),
    ):
        size = made.entries[name]
        assert size & (size - 1) == 0
        assert need <= size < 2 * need
        assert made.constants()[mask] == size - 1
    assert made.entries["flow_tags"] == made.entries["flows"]


@given(limits)
def test_a_backend_fits_into_a_handle(wanted: Limits) -> None:
    """Every index that the limits allow has room in its bits."""
    bits = int(BTF.enum("handle_bits")["HANDLE_INDEX_BITS"])
    assert layout(wanted).entries["backends"] <= 1 << bits


def test_the_defaults_take_what_the_documentation_says() -> None:
    """1,280 tables of the usual size, 65,536 slots for 4,096 services."""
    entries = layout(Limits()).entries
    assert entries["vips"] == 65536
    assert entries["maglev"] * LINE // 16381 == 1280
