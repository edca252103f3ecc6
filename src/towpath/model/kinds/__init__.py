# SPDX-License-Identifier: Apache-2.0
"""What each field may hold, said once.

A dataclass field is annotated with its type and a kind, such as
``Annotated[int, Integer(1, 65535)]``. The kind's ``parse`` is the only place
that knows what is allowed: the YAML reader, the checks of objects made in
Python and pydantic (so FastAPI) all call it, and its message is what a user
reads. pydantic is imported only when pydantic itself asks for a schema: a
program that names a dataclass does not wait for it.
"""

from towpath.model.kinds.addresses import (
    PORT,
    Address,
    Listen,
    Prefix,
    SourceAddress,
    UnicastAddress,
    UnicastAddresses,
    Vip,
    address_of,
    not_unicast,
    numbers,
    prefix_of,
    split_endpoint,
)
from towpath.model.kinds.base import FieldError, Kind, plain, shown
from towpath.model.kinds.checks import (
    CommandLine,
    DomainName,
    GrpcName,
    HostName,
    Payload,
    Seconds,
    StatusCodes,
    UrlPath,
    has_status,
    payload,
)
from towpath.model.kinds.durations import Duration, written
from towpath.model.kinds.names import AbsolutePath, DeviceName, Name
from towpath.model.kinds.ports import ANY_PORT, PortRange, Ports, PortSet
from towpath.model.kinds.prefixes import Prefixes, SourcePrefixes, fewest
from towpath.model.kinds.scalars import Flag, Integer, Integers, IntegerSet, OrNone, Prime, Word

__all__ = [
    "ANY_PORT",
    "PORT",
    "AbsolutePath",
    "Address",
    "CommandLine",
    "DeviceName",
    "DomainName",
    "Duration",
    "FieldError",
    "Flag",
    "GrpcName",
    "HostName",
    "Integer",
    "IntegerSet",
    "Integers",
    "Kind",
    "Listen",
    "Name",
    "OrNone",
    "Payload",
    "PortRange",
    "PortSet",
    "Ports",
    "Prefix",
    "Prefixes",
    "Prime",
    "Seconds",
    "SourceAddress",
    "SourcePrefixes",
    "StatusCodes",
    "UnicastAddress",
    "UnicastAddresses",
    "UrlPath",
    "Vip",
    "Word",
    "address_of",
    "fewest",
    "has_status",
    "not_unicast",
    "numbers",
    "payload",
    "plain",
    "prefix_of",
    "shown",
    "split_endpoint",
    "written",
]
