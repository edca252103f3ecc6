# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what they become, and how wrong ones are refused."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towpath.model import (
    Affinity,
    Api,
    Backend,
    Config,
    ConfigError,
    Device,
    Limits,
    Metrics,
    Problem,
    Protocol,
    Service,
    Source,
    State,
    parse_config,
    parse_services,
)
from towpath.model.problems import MAX_PROBLEMS, MORE

FULL = """\
devices:
  - eth0
  - {name: eth1, mode: native, attach: dispatcher, priority: 20}
source: {ipv4: 172.16.0.0/16, ipv6: 2001:db8:100::/96}
limits: {services: 10, backends: 20, flows: 2048, table_slots: 50000, clients: 4096, sources: 99}
api: {socket: /run/lb.sock}
metrics: {listen: "[::1]:9464"}
state: {directory: /var/lib/lb, pins: /sys/fs/bpf/lb}
services:
  - name: web
    vip: 203.0.113.10
    port: 80
    protocol: tcp
    forwarding: l2
    table_size: 251
    flow_table: false
    affinity: {timeout: 1h30m}
    allow_from: [198.51.100.7, 198.51.100.0/24, 2001:db8:8000::/33, 2001:db8::/33]
    backends:
      - {address: 192.0.2.11, weight: 3}
      - address: 2001:db8:1::11
      - 192.0.2.12
  - {name: dns, vip: "2001:db8::53", port: 53, protocol: udp}
"""


def refused(text: str) -> list[str]:
    """What the text is refused with, line by line."""
    with pytest.raises(ConfigError) as caught:
        parse_config(dedent(text), "lb.yaml")
    return str(caught.value).splitlines()


def test_every_key_is_read() -> None:
    """A file that uses everything becomes exactly these objects."""
    assert parse_config(FULL, "lb.yaml") == Config(
        devices=(Device("eth0"), Device("eth1", "native", "dispatcher", 20)),
        source=Source(IPv4Network("172.16.0.0/16"), IPv6Network("2001:db8:100::/96")),
        limits=Limits(
            services=10, backends=20, flows=2048, clients=4096, sources=99, table_slots=50000
        ),
        api=Api(Path("/run/lb.sock")),
        metrics=Metrics("[::1]:9464"),
        state=State(Path("/var/lib/lb"), Path("/sys/fs/bpf/lb")),
        services=(
            Service(
                "web",
                ip_address("203.0.113.10"),
                80,
                Protocol.TCP,
                (
                    Backend(ip_address("192.0.2.11"), 3),
                    Backend(ip_address("2001:db8:1::11")),
                    Backend(ip_address("192.0.2.12")),
                ),
                "l2",
                251,
                flow_table=False,
                affinity=Affinity(5400),
                allow_from=(ip_network("198.51.100.0/24"), ip_network("2001:db8::/32")),
            ),
            Service("dns", ip_address("2001:db8::53"), 53, Protocol.UDP),
        ),
    )


def test_all_but_devices_has_a_default() -> None:
    """The shortest file; sections left empty are as if they were not there."""
    shortest = parse_config("devices: [eth0]", "lb.yaml")
    assert shortest == Config(devices=(Device("eth0"),))
    assert parse_config("devices: [eth0]\nservices:\nsource:\n", "lb.yaml") == shortest


@pytest.mark.parametrize(
    ("written", "meant"),
    [("", None), ("{}", Affinity(10800)), ("90s", Affinity(90)), ("{timeout: 90}", Affinity(90))],
)
def test_affinity_can_be_written_in_full_or_as_its_timeout(
    written: str, meant: Affinity | None
) -> None:
    """Left empty it is not there."""
    text = f"devices: [a]\nservices: [{{name: a, vip: 203.0.113.1, port: 1, affinity: {written}}}]"
    (service,) = parse_config(text, "f").services
    assert service.affinity == meant


def test_lists_of_sources_count_once() -> None:
    """Equal ones, however they are written, take room once."""
    text = """\
        devices: [a]
        limits: {sources: %d}
        services:
          - {name: a, vip: 203.0.113.1, port: 1, allow_from: [10.0.0.0/8, "2001:db8::/32"]}
          - {name: b, vip: "2001:db8::1", port: 1, allow_from: ["2001:db8::/32", 10.0.0.0/8]}
          - {name: c, vip: 203.0.113.1, port: 2, allow_from: [10.0.0.0/9, 11.0.0.0/8]}
          - {name: d, vip: 203.0.113.1, port: 3}
        """
    assert parse_config(dedent(text % 4), "lb.yaml").limits.sources == 4
    assert refused(text % 3) == [
        "lb.yaml:2: limits.sources: 3 is too few for the services listed; allowed: 4 or more"
    ]


def test_source_prefix_of_one_address_is_that_address() -> None:
    """There is nothing to vary in a /32."""
    config = parse_config("devices: [a]\nsource: {ipv4: 192.0.2.1/32, ipv6: 2001:db8::1}", "f")
    assert config.source == Source(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))


def test_aliases_and_merge_keys_work() -> None:
    """What services have in common is written once."""
    config = parse_config(
        dedent("""\
            devices: [eth0]
            services:
              - &web {name: web, vip: 203.0.113.10, port: 80, backends: &all [192.0.2.11]}
              - {<<: *web, name: web-tls, port: 443}
              - {name: dns, vip: 203.0.113.10, port: 53, protocol: udp, backends: *all}
        """),
        "lb.yaml",
    )
    assert [service.name for service in config.services] == ["web", "web-tls", "dns"]
    assert {service.backends for service in config.services} == {
        (Backend(ip_address("192.0.2.11")),)
    }


def test_all_problems_are_found_at_once() -> None:
    """Every mistake of wrong.yaml in its line, by its field, with what is allowed."""
    here = Path(__file__).parent
    with pytest.raises(ConfigError) as caught:
        parse_config((here / "wrong.yaml").read_text(), "wrong.yaml")
    assert str(caught.value).splitlines() == (here / "wrong.txt").read_text().splitlines()


def test_without_services_no_device_is_needed() -> None:
    """An agent may do something else than balance, but a file that says nothing is none."""
    config = parse_config("api: {socket: /run/x.sock}", "towpath.yaml")
    assert config.devices == ()
    assert config.services == ()
    assert config.sections == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "devices: is missing"),
        ("devices:", "1: devices: is empty; allowed: one device or more"),
        (
            "services: [{name: a, vip: 192.0.2.1, port: 1}]",
            "1: devices: is missing, but there are services; allowed: one device or more",
        ),
        (
            "devices: [eth0]\nunwrap: {udp_ports: [6080]}",
            "2: unwrap.addresses: is missing, but there is udp_ports; allowed: outer destinations",
        ),
        ("devices: {}", "1: devices: {} is not a list; allowed: a list, such as [...] or lines "),
        (
            "eth0",
            "1: 'eth0' is not a mapping; allowed keys: devices, source, limits, checks",
        ),
        ("devices: [on]", "1: devices[0].name: true is not text; put it in quotes; allowed: "),
        ("devices: [null]", "1: devices[0]: null is not a mapping; allowed keys: name, mode"),
        (
            "\ndevices: [eth0\n",
            "3: not YAML: while parsing a flow sequence that starts in line 2: did not find",
        ),
        ("a: b: c", "1: not YAML: mapping values are not allowed in this context"),
        ("a: *b", "1: not YAML: found undefined alias"),
        (
            "a: 1\n--- 2",
            "2: not YAML: expected a single document in the stream that starts in line 1: but",
        ),
        ("? [a]\n: 1", "1: not YAML: a key is a list or a mapping; allowed: text"),
        ("a: 2024-13-45", "1: not YAML: '2024-13-45' is not a timestamp"),
        ("a: !!bool maybe", "1: not YAML: 'maybe' is not a bool"),
        ("a: !!python/object:os.system 1", "1: not YAML: could not determine a constructor"),
        ("a: &a [*a]", "1: not YAML: an alias repeats what it is in, or too much"),
        ("\n" + "[" * 100_000, "2: not YAML: nested more than 32 deep"),
        ("a: \0", "not YAML: control characters are not allowed"),
        ("a: \ud800", "not YAML: 'utf-8' codec can't encode character"),
        (
            "devices: [a]\nlimits: {flows: 0x" + "f" * 6000 + "}",
            f"2: limits.flows: '0x{54 * 'f'}... is not a decimal number; allowed: digits",
        ),
        (
            "devices: [a]\nlimits: {flows: " + "9" * 6000 + "}",
            f"2: not YAML: '{56 * '9'}... is not a int",
        ),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, problem: str) -> None:
    """Malformed and hostile YAML has a line, a reason, and no effect."""
    place = "lb.yaml:" if problem[0].isdigit() else "lb.yaml: "
    assert refused(text)[0].startswith(place + problem)


@pytest.mark.parametrize(
    "value",
    [
        "0443",
        "00",
        "-010",
        "0x1bb",
        "0b11",
        "1_000",
        "7:23",
        "+8",
        "1_0.5",
        "7:23.5",
        "+0.5",
    ],
)
@pytest.mark.parametrize("field", ["port", "table_size", "name", "flow_timeout"])
def test_only_plain_decimals_are_numbers(field: str, value: str) -> None:
    """What YAML 1.1 reads as another number than people mean is told with its line, and once."""
    service = {"name": "web", "vip": "203.0.113.10", "port": "53/udp", field: value}
    lines = "".join(f"\n    {key}: {text}" for key, text in service.items())
    number = 3 + list(service).index(field)
    (problem,) = refused(f"devices: [eth0]\nservices:\n  -{lines[4:]}")
    assert problem == (
        f"lb.yaml:{number}: services[0].{field}: {value!r} is not a decimal number; allowed: "
        "digits that don't begin with 0, such as 8 or 0.5; text in quotes"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", "089"),
        ("port", "'0443'"),
        ("port", "0443/tcp"),
        ("port", "80-0443"),
        ("flow_timeout", "030s"),
        ("flow_timeout", "'08'"),
        ("flow_timeout", "1m030s"),
    ],
)
def test_text_has_plain_decimals_too(field: str, value: str) -> None:
    """So that 0443 means nothing anywhere, instead of this here and that there."""
    service = {"name": "web", "vip": "203.0.113.10", "port": "53/udp", field: value}
    lines = "".join(f"\n    {key}: {text}" for key, text in service.items())
    (problem,) = refused(f"devices: [eth0]\nservices:\n  -{lines[4:]}")
    number = 3 + list(service).index(field)
    assert problem.startswith(f"lb.yaml:{number}: services[0].{field}: ")


def test_repeated_aliases_are_refused_soon() -> None:
    """Ten lines that stand for ten thousand million values cost a second, not the memory."""
    lines = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    (problem,) = refused("\n".join(lines))
    assert problem.endswith("not YAML: an alias repeats what it is in, or too much")


def test_missing_fields_are_named_where_they_should_be() -> None:
    """The line is that of the service they are missing in."""
    assert refused("devices: [eth0]\nservices:\n  - name: web\n    port: 80\n") == [
        "lb.yaml:3: services[0].vip: is missing"
    ]


def test_table_too_small_for_its_backends() -> None:
    """Fewer slots than backends with a weight are refused, with what would be good."""
    backends = ", ".join(f"2001:db8:1::{host:x}" for host in range(1, 301))
    service = f"name: web, vip: 203.0.113.1, port: 80, table_size: 251, backends: [{backends}]"
    assert refused(f"devices: [eth0]\nservices:\n  - {{{service}}}") == [
        (
            "lb.yaml:3: services[0].table_size: 251 slots are too few for 300 backends; "
            "allowed: a prime of at least 307, recommended: 30011"
        )
    ]


def test_services_that_exceed_the_limits() -> None:
    """A limit below what the file itself lists is refused."""
    text = FULL.replace("services: 10, backends: 20, flows: 2048, table_slots: 50000", LIMITS)
    assert refused(text) == [
        "lb.yaml:5: limits.services: 1 is too few for the services listed; allowed: 2 or more",
        "lb.yaml:5: limits.backends: 2 is too few for the services listed; allowed: 3 or more",
    ]


LIMITS = "services: 1, backends: 2, flows: 2048, table_slots: 251"


def test_only_so_many_problems_are_told() -> None:
    """The first ones, and that there are more; what comes after them isn't looked at."""
    lines = [f"- {{name: s{n}, vip: 203.0.113.1, port: {n}, tabel_size: 1}}" for n in range(1, 301)]
    for count, told in ((MAX_PROBLEMS, MAX_PROBLEMS), (300, MAX_PROBLEMS + 1)):
        with pytest.raises(ConfigError) as refusal:
            parse_services("services:\n" + "\n".join(lines[:count]), "many.yaml")
        problems = refusal.value.problems
        assert len(problems) == told
        first = [each.field for each in problems[:MAX_PROBLEMS]]
        assert first == [f"services[{n}].tabel_size" for n in range(MAX_PROBLEMS)]
    assert problems[-1] == MORE


def test_problems_are_structured() -> None:
    """A program finds file, line, field and message apart."""
    with pytest.raises(ConfigError) as caught:
        parse_config("devices: [eth0]\napi: {socket: 5}", "lb.yaml")
    message = "5 is not text; put it in quotes; allowed: an absolute path"
    assert caught.value.problems == (Problem(message, "api.socket", "lb.yaml", 2),)


def test_a_file_of_services_alone() -> None:
    """It has services and nothing else."""
    text = FULL[FULL.index("services:\n") :]
    assert parse_services(text, "web.yaml") == parse_config(FULL, "lb.yaml").services
    with pytest.raises(ConfigError, match=r"web\.yaml:4: source: unknown key; allowed: services"):
        parse_services(FULL, "web.yaml")


@settings(max_examples=300)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="ab:-[]{}&*!|>'\"#%@,? \n\t0<~"),
        st.lists(st.sampled_from(FULL.split()), max_size=40).map(" ".join),
        st.permutations(FULL.splitlines()).map("\n".join),
    )
)
def test_no_text_causes_another_error(text: str) -> None:
    """Whatever the text, it is a configuration or a ConfigError."""
    try:
        config = parse_config(text, "lb.yaml")
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either is right
    else:
        assert isinstance(config, Config)


@settings(max_examples=300)
@given(st.data())
def test_one_wrong_value_is_one_refusal_in_its_line(data: st.DataObject) -> None:
    """Any value replaced by rubbish is reported in the line it is in."""
    lines = FULL.splitlines()
    number = data.draw(st.sampled_from([1, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 17, 19]))
    before, _, _ = lines[number].rpartition(" ")
    lines[number] = f"{before} {data.draw(st.sampled_from(['[[]]', '-3', '@', '{a: {}}']))}"
    problems = refused("\n".join(lines))
    assert any(problem.startswith(f"lb.yaml:{number + 1}:") for problem in problems) or any(
        "not YAML" in problem for problem in problems
    )
