# SPDX-License-Identifier: Apache-2.0
"""What is wished for, as plain data: services, backends, settings.

Importing this imports neither pydantic nor YAML.
"""

from towpath.model.flow import FlowTuple
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
from towpath.model.service import (
    Affinity,
    Backend,
    BackendState,
    Protocol,
    Service,
    ServiceKey,
)
from towpath.model.settings import Api, Config, Device, Drain, Limits, Metrics, Source, State

__all__ = [
    "Address",
    "Affinity",
    "Api",
    "Backend",
    "BackendState",
    "Config",
    "ConfigError",
    "Device",
    "Drain",
    "FlowTuple",
    "Limits",
    "Metrics",
    "Problem",
    "Protocol",
    "Service",
    "ServiceKey",
    "Source",
    "State",
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
