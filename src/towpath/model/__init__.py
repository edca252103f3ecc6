# SPDX-License-Identifier: Apache-2.0
"""What is wished for, as plain data: services, backends, settings.

Importing this imports neither pydantic nor YAML.
"""

from towpath.model.flow import FlowTuple
from towpath.model.health import AllFailed, CheckType, Health, OnDown
from towpath.model.kinds import Address
from towpath.model.parse import (
    advice,
    check_service,
    check_services,
    make_config,
    parse_config,
    parse_service,
    parse_services,
    problems_of,
    service_problems,
)
from towpath.model.problems import ConfigError, Problem
from towpath.model.quic import Quic
from towpath.model.service import (
    Affinity,
    Backend,
    BackendState,
    Protocol,
    Service,
    ServiceKey,
    SourceRoute,
)
from towpath.model.settings import (
    Api,
    Checks,
    Config,
    Device,
    Drain,
    ForeignCheck,
    Icmp,
    Limits,
    Local,
    Metrics,
    Neighbours,
    Source,
    State,
    Unwrap,
)
from towpath.model.snat import Snat
from towpath.model.traced import TracedPacket

__all__ = [
    "Address",
    "Affinity",
    "AllFailed",
    "Api",
    "Backend",
    "BackendState",
    "CheckType",
    "Checks",
    "Config",
    "ConfigError",
    "Device",
    "Drain",
    "FlowTuple",
    "ForeignCheck",
    "Health",
    "Icmp",
    "Limits",
    "Local",
    "Metrics",
    "Neighbours",
    "OnDown",
    "Problem",
    "Protocol",
    "Quic",
    "Service",
    "ServiceKey",
    "Snat",
    "Source",
    "SourceRoute",
    "State",
    "TracedPacket",
    "Unwrap",
    "advice",
    "check_service",
    "check_services",
    "make_config",
    "parse_config",
    "parse_service",
    "parse_services",
    "problems_of",
    "service_problems",
]
