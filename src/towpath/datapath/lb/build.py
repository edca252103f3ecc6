# SPDX-License-Identifier: Apache-2.0
"""The load balancer's tables, put together from the maps that they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.datapath.lb.backends import BackendTable
from towpath.datapath.lb.encap import Encaps
from towpath.datapath.lb.extents import Extents
from towpath.datapath.lb.grace import Reclaimer
from towpath.datapath.lb.kernel_tables import KernelTables
from towpath.datapath.lb.local import LocalBackends, nobody
from towpath.datapath.lb.lookup import Endpoints, Lengths
from towpath.datapath.lb.maglev_table import MaglevSlots
from towpath.datapath.lb.marks import Marks
from towpath.datapath.lb.options import Flags, ServiceOptions
from towpath.datapath.lb.port_pages import PortPages
from towpath.datapath.lb.quic import Forms, ServerIds
from towpath.datapath.lb.quic_index import IdIndex
from towpath.datapath.lb.services import ServiceRows
from towpath.datapath.lb.sources import SourceSets
from towpath.datapath.lb.vips import VipIndex
from towpath.datapath.maps.layout import QUIC_SLOTS_PER_ID
from towpath.kernel.bpf.rcu import wait_for_readers
from towpath.model.service import BackendState

if TYPE_CHECKING:
    from towpath.datapath.lb.local import IsHere
    from towpath.datapath.maps.source import TableSource


def tables(source: TableSource, is_here: IsHere = nobody) -> KernelTables:
    """Return the tables in these maps, as they are when nothing is in them.

    ``is_here``: whether packets to a backend are delivered on this node.
    """
    reclaimer = Reclaimer(wait_for_readers)
    slots = MaglevSlots(source.maps["maglev"], source.constant("maglev_limits", "MAGLEV_LINE"))
    return KernelTables(
        _endpoints(source, reclaimer),
        _backends(source, reclaimer),
        Extents(slots.capacity, wait_for_readers),
        slots,
        _services(source, reclaimer),
        _options(source, reclaimer),
        LocalBackends(
            source.rows("local_backends"),
            source.rows("services"),
            source.constant("service_flags", "SERVICE_LOCAL"),
            source.constant("handle_bits", "HANDLE_INDEX_BITS"),
            is_here,
        ),
        _server_ids(source, reclaimer),
        Marks(source.rows("table_marks"), _states(source)),
    )


def _states(source: TableSource) -> dict[BackendState, int]:
    return {
        state: source.constant("backend_state", f"BACKEND_{state.name}") for state in BackendState
    }


def _services(source: TableSource, reclaimer: Reclaimer) -> ServiceRows:
    columns = source.layout.entries["services"]
    forget = source.forgetter("service_cpus", "reply_cpus", "quic_cpus", columns=columns)
    return ServiceRows(source.rows("services"), reclaimer, forget)


def _backends(source: TableSource, reclaimer: Reclaimer) -> BackendTable:
    columns = source.layout.entries["backends"]
    return BackendTable(
        source.rows("backends"),
        source.constant("handle_bits", "HANDLE_INDEX_BITS"),
        reclaimer,
        source.forgetter("backend_cpus", "backend_flows", columns=columns),
        _states(source),
    )


def _options(source: TableSource, reclaimer: Reclaimer) -> ServiceOptions:
    trie = source.maps["sources"]
    sets = SourceSets(
        trie,
        trie.key_dtype,
        source.constant("source_limits", "SOURCE_BITS"),
        source.layout.entries["sources"],
        reclaimer,
    )
    names = (
        "NO_FLOW_TABLE",
        "L2",
        "SNAT",
        "LOCAL",
        "ENCAP",
        "HASH_CLIENT",
        "HASH_PORT",
        "QUIC",
        "ROUTES_SHIFT",
    )
    flags = Flags(*(source.constant("service_flags", f"SERVICE_{name}") for name in names))
    return ServiceOptions(
        source.rows("services"),
        flags,
        sets,
        Encaps(source.constant),
        Forms(source.constant),
        source.rows("quic_forms"),
    )


def _server_ids(source: TableSource, reclaimer: Reclaimer) -> ServerIds:
    slots = source.rows("quic_servers")
    probes = source.constant("quic_limits", "QUIC_PROBES")
    capacity = len(slots) // QUIC_SLOTS_PER_ID
    return ServerIds(IdIndex(slots, probes, reclaimer, capacity), capacity)


def _endpoints(source: TableSource, reclaimer: Reclaimer) -> Endpoints:
    flag = source.constant("vip_kind", "VIP_PREFIX")
    probes = source.constant("vip_limits", "VIP_PROBES")
    most = source.constant("vip_families", "VIP_LENGTHS")
    whole = source.constant("port_pages", "PORT_WHOLE")
    (lengths,) = source.rows("vip_lengths")
    return Endpoints(
        VipIndex(source.rows("vips"), probes, reclaimer, flag),
        PortPages(source.rows("port_pages"), whole, reclaimer),
        Lengths(lengths["ports"], most),
        Lengths(lengths["known"], most),
        flag,
    )
