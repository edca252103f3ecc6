# SPDX-License-Identifier: Apache-2.0
"""What a load balancer says of itself: plans, counters, flows, traces.

:class:`towpath.LoadBalancer` and :class:`towpath.Client` return the same ones, and as JSON they
are what the agent's API and ``-o json`` give. Plain data: importing them costs next to nothing.
"""

from towpath.documents.bandwidth import (
    Bandwidth,
    BandwidthAggregate,
    BandwidthDevice,
)
from towpath.documents.cgroup import (
    CgroupAncestor,
    CgroupProgram,
    CgroupRoot,
)
from towpath.documents.masquerade import (
    Masquerade,
    MasqueradeCounters,
    MasqueradeDevice,
    MasqueradedFlow,
    MasqueradedFlows,
    MasqueradeRule,
)
from towpath.documents.neigh import (
    Doubtful,
    NextHop,
    NextHops,
    Route,
    Unreached,
    UnreachedBackend,
)
from towpath.documents.services import (
    BackendCounters,
    BackendStatus,
    CpuCounters,
    DeviceStatus,
    Plan,
    ServiceChange,
    ServiceCounters,
    ServiceName,
)
from towpath.documents.socket import (
    PacketFlow,
    Socket,
    SocketBackend,
    SocketCounters,
    SocketFlow,
    SocketFlows,
    SocketHook,
    SocketPackets,
    SocketProgram,
    SocketService,
    SocketStale,
    SocketTrace,
)
from towpath.documents.traffic import (
    Counters,
    CpuVerdicts,
    Flow,
    FlowCount,
    FlowCounts,
    Flows,
    Refused,
    Trace,
    Translation,
    UnwrappedCounters,
)

__all__ = [
    "BackendCounters",
    "BackendStatus",
    "Bandwidth",
    "BandwidthAggregate",
    "BandwidthDevice",
    "CgroupAncestor",
    "CgroupProgram",
    "CgroupRoot",
    "Counters",
    "CpuCounters",
    "CpuVerdicts",
    "DeviceStatus",
    "Doubtful",
    "Flow",
    "FlowCount",
    "FlowCounts",
    "Flows",
    "Masquerade",
    "MasqueradeCounters",
    "MasqueradeDevice",
    "MasqueradeRule",
    "MasqueradedFlow",
    "MasqueradedFlows",
    "NextHop",
    "NextHops",
    "PacketFlow",
    "Plan",
    "Refused",
    "Route",
    "ServiceChange",
    "ServiceCounters",
    "ServiceName",
    "Socket",
    "SocketBackend",
    "SocketCounters",
    "SocketFlow",
    "SocketFlows",
    "SocketHook",
    "SocketPackets",
    "SocketProgram",
    "SocketService",
    "SocketStale",
    "SocketTrace",
    "Trace",
    "Translation",
    "Unreached",
    "UnreachedBackend",
    "UnwrappedCounters",
]
