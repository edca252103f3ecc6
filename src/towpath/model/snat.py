# SPDX-License-Identifier: Apache-2.0
"""What services with ``forwarding: snat`` translate their clients to."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, ClassVar

from towpath.model.kinds import Address, Integer, PortRange
from towpath.model.kinds.translation import PortSpan, TranslationAddresses
from towpath.model.service import PYDANTIC, Service

# The table counts time in at most 2.56 s and has 16 bits for it; at 1000 Hz that is 4.6 h.
MAX_TIMEOUT = 14400

_PORTS = PortRange(10000, 32767)


@dataclass(frozen=True, slots=True)
class Snat:
    """Addresses and ports for source NAT.

    Changing anything here needs a restart; other addresses or ports end the flows that there are.
    """

    __pydantic_config__: ClassVar[Any] = PYDANTIC

    ipv4: Annotated[tuple[IPv4Address, ...], TranslationAddresses(4)] = ()
    """Addresses that backends see instead of clients', and whose packets come back here. 0.0.0.0:
    the one that the devices were given first, of those that stay."""
    ipv6: Annotated[tuple[IPv6Address, ...], TranslationAddresses(6)] = ()
    """The same for IPv6, with ``::``."""
    ports: Annotated[PortRange, PortSpan()] = _PORTS
    """Source ports to choose from. This node must use none of them itself on those addresses."""
    tcp_timeout: Annotated[int, Integer(60, MAX_TIMEOUT)] = 7200
    """Seconds that an established TCP connection without packets is remembered."""
    rate: Annotated[int, Integer(1000, 1 << 30)] = 200000
    """New flows a second that each CPU translates at most. The rest is dropped: a flood mustn't
    take all ports, nor all time."""
    udp_timeout: Annotated[int, Integer(10, MAX_TIMEOUT)] = 60
    """Seconds that a UDP flow with packets both ways is remembered after the last of them."""

    def addresses(self, version: int) -> tuple[Address, ...]:
        """The addresses of one family, 4 or 6."""
        return self.ipv4 if version == 4 else self.ipv6  # noqa: PLR2004 - the IP version

    def problem(self, service: Service) -> str | None:
        """Say why packets of a service can't be translated, if they are to be and can't."""
        version = service.vip.version
        if service.forwarding != "snat" or service.scope == "node" or self.addresses(version):
            return None
        return missing(version)


NO_SNAT = Snat()
"""No address: no service can be translated."""


def missing(version: int) -> str:
    """Say that there are no addresses of a family to translate to."""
    return (
        f"snat needs an IPv{version} address to translate to, and snat.ipv{version} has none; "
        f"allowed: dsr, or a configuration with snat.ipv{version}"
    )
