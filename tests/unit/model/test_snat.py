# SPDX-License-Identifier: Apache-2.0
"""What can be translated to, and which services need it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from towpath.model import ConfigError, Service, Snat, make_config, parse_config
from towpath.model.kinds import PortRange
from towpath.model.parse import service_problems

SERVICE = "services: [{name: web, vip: 203.0.113.10, port: 80, forwarding: snat}]\n"


def config(snat: str, services: str = "") -> Snat:
    """The snat section of a configuration with this in it."""
    return parse_config(f"devices: [eth0]\nsnat: {snat}\n{services}", "towpath.yaml").snat


def problem(snat: str, services: str = "") -> str:
    """The one thing that is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        config(snat, services)
    [found] = caught.value.problems
    return str(found)


def test_addresses_and_prefixes() -> None:
    """Every address of a prefix is meant, also its first and last."""
    snat = config("{ipv4: [192.0.2.9, 192.0.2.12/30], ipv6: [2001:db8::1], ports: 2000-3000}")
    assert [str(address) for address in snat.ipv4] == [
        "192.0.2.9",
        *(f"192.0.2.{n}" for n in range(12, 16)),
    ]
    assert snat.ipv6 == (ip_address("2001:db8::1"),)
    assert snat.ports == PortRange(2000, 3000)


def test_one_address_needs_no_list() -> None:
    """As everywhere where a list has one item."""
    assert config("{ipv4: 192.0.2.9}").ipv4 == (ip_address("192.0.2.9"),)


def test_the_unspecified_address_is_the_nodes() -> None:
    """Of each family its own."""
    snat = config("{ipv4: 0.0.0.0, ipv6: ['::']}")
    assert (snat.ipv4, snat.ipv6) == ((ip_address("0.0.0.0"),), (ip_address("::"),))


def test_without_a_section_nothing_is_translated() -> None:
    """And the ports are those that Linux doesn't use for itself."""
    snat = make_config({"devices": ["eth0"]}).snat
    assert (snat.ipv4, snat.ipv6, snat.ports) == ((), (), PortRange(10000, 32767))


@pytest.mark.parametrize(
    ("snat", "message"),
    [
        ("{ipv4: [2001:db8::1]}", "snat.ipv4: '2001:db8::1' is IPv6; allowed: up to 16 IPv4"),
        ("{ipv6: [192.0.2.1]}", "snat.ipv6: '192.0.2.1' is IPv4; allowed: up to 16 IPv6"),
        ("{ipv4: [192.0.2.0/27]}", "snat.ipv4: 192.0.2.0/27 is too wide; allowed: up to 16"),
        ("{ipv4: [192.0.2.0/28, 192.0.2.16]}", "snat.ipv4: 17 addresses are too many"),
        ("{ipv4: ['::']}", "snat.ipv4: '::' is IPv6; allowed: up to 16 IPv4"),
        ("{ipv4: [0.0.0.1]}", "snat.ipv4: 0.0.0.1 is in 0.0.0.0/8, which no host has"),
        ("{ipv4: [192.0.2.1/28]}", "snat.ipv4: '192.0.2.1/28' has host bits set"),
        ("{ipv4: [192.0.2.1, 192.0.2.0/31]}", "snat.ipv4: 192.0.2.1 is listed twice"),
        ("{ipv4: [224.0.0.1]}", "snat.ipv4: 224.0.0.1 is a multicast address; allowed: up to 16"),
        ("{ipv4: [127.0.0.0/31]}", "snat.ipv4: 127.0.0.0 is a loopback address"),
        ("{ipv4: [web]}", "snat.ipv4: 'web' is not an address; allowed: up to 16 IPv4 addresses"),
        ("{ports: 10000-10014}", "snat.ports: 15 ports are too few; allowed: a range of at least"),
        ("{ports: 20000-10000}", "snat.ports: '20000-10000' ends before it begins; allowed: 10000"),
        (
            "{ports: 80-2000}",
            "snat.ports: 80-2000 is out of range; allowed: a range of",
        ),
        ("{ports: 60000-65536}", "snat.ports: 60000-65536 is out of range"),
        ("{ports: 10000}", "snat.ports: 10000 is not a range of ports; allowed: a range of at "),
        ("{tcp_timeout: 14401}", "snat.tcp_timeout: 14401 is out of range; allowed: 60 to 14400"),
        ("{udp_timeout: 9}", "snat.udp_timeout: 9 is out of range; allowed: 10 to 14400"),
        ("{port: 1}", "snat.port: unknown key; did you mean ports? allowed: ipv4, ipv6, ports"),
    ],
)
def test_what_is_refused(snat: str, message: str) -> None:
    """Says where, what is wrong and what is allowed."""
    assert problem(snat).startswith(f"towpath.yaml:2: {message}")


def test_a_service_needs_an_address_of_its_family() -> None:
    """One that isn't translated doesn't."""
    assert problem("{ipv6: [2001:db8::1]}", SERVICE) == (
        "towpath.yaml:3: services[0].forwarding: snat needs an IPv4 address to translate to, and "
        "snat.ipv4 has none; allowed: dsr, or a configuration with snat.ipv4"
    )
    config("{ipv4: [192.0.2.9]}", SERVICE)
    config("{}", SERVICE.replace("snat", "dsr"))


def test_backends_have_the_vips_family() -> None:
    """Packets are not translated from one to the other."""
    for vip, backend, message in (
        ("203.0.113.10", "2001:db8::2", "2001:db8::2 is IPv6 but the vip 203.0.113.10 is IPv4"),
        ("2001:db8::9", "192.0.2.2", "192.0.2.2 is IPv4 but the vip 2001:db8::9 is IPv6"),
    ):
        services = SERVICE.replace("203.0.113.10", f'"{vip}"').replace(
            "snat}", f'snat, backends: ["{backend}"]}}'
        )
        found = problem("{ipv4: [192.0.2.9], ipv6: [2001:db8::1]}", services)
        assert f"services[0].backends[0].address: {message}, which " in found


def test_objects_say_what_they_lack() -> None:
    """As the load balancer asks before it changes anything."""
    web = Service("web", ip_address("203.0.113.10"), 80, forwarding="snat")
    assert "snat.ipv4 has none" in (Snat().problem(web) or "")
    assert Snat(ipv4=(ip_address("192.0.2.1"),)).problem(web) is None  # type: ignore[arg-type]
    assert Snat().problem(Service("web", ip_address("203.0.113.10"), 80)) is None


OWN = "backends: [{address: 192.0.2.2, port: 8080}, 192.0.2.3]"


def test_backends_may_have_a_port_of_their_own() -> None:
    """Where they have none it is the service's."""
    services = SERVICE.replace("snat}", f"snat, {OWN}}}")
    (service,) = parse_config(
        f"devices: [eth0]\nsnat: {{ipv4: [192.0.2.9]}}\n{services}", "towpath.yaml"
    ).services
    assert [backend.port for backend in service.backends] == [8080, None]
    assert service_problems(service) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("snat", "dsr"), "8080 is the backend's own, but forwarding dsr does not change ports; "),
        (("snat", "l2"), "8080 is the backend's own, but forwarding l2 does not change ports; "),
        (("forwarding: snat, ", ""), "8080 is the backend's own, but forwarding dsr does not"),
        (("80,", "[80, 81],"), "8080 is the backend's own, but the service is for ports 80-81; "),
        (("80,", "80-89,"), "8080 is the backend's own, but the service is for ports 80-89; "),
        (("80,", "any,"), "8080 is the backend's own, but the service is for ports any; allowed: "),
        (("8080", "0"), "0 is out of range; allowed: 1 to 65535"),
        (("8080", "65536"), "65536 is out of range; allowed: 1 to 65535"),
    ],
)
def test_a_port_of_its_own_is_for_what_can_be_translated_to_it(
    change: tuple[str, str], message: str
) -> None:
    """Of one port, by forwarding snat."""
    services = SERVICE.replace("snat}", f"snat, {OWN}}}").replace(*change)
    found = problem("{ipv4: [192.0.2.9]}", services)
    assert found.startswith(f"towpath.yaml:3: services[0].backends[0].port: {message}")
    assert found.count("\n") == 0
