# SPDX-License-Identifier: Apache-2.0
"""The command line against a real agent: what it prints, and what it changes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.lab.harness_agent import DNS, MAIL, WEB, Agent, names, put, running

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOW = "198.51.100.7:40000 -> 203.0.113.10:80 tcp"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for the module."""
    with running(tmp_path_factory.mktemp("agent")) as started:
        yield started


@pytest.fixture
def agent(shared: Agent) -> Agent:
    """The agent with WEB in its file and MAIL by the API."""
    put(shared, MAIL, prune=True)
    return shared


def printed(agent: Agent, *arguments: str) -> str:
    """What a command prints when it succeeds."""
    ran = agent.command(*arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def refused(agent: Agent, *arguments: str) -> str:
    """What a command says when it is refused."""
    ran = agent.command(*arguments)
    assert (ran.returncode, ran.stdout) == (1, "")
    return ran.stderr


READING = {
    "status": ["status", "--counters"],
    "service list": ["service", "list"],
    "service get": ["service", "get", "web"],
    "backend list": ["backend", "list", "web"],
    "service counters": ["service", "counters", "web", "--per-cpu"],
    "flows": ["flows"],
    "flows --count": ["flows", "--count"],
    "trace": ["trace", FLOW],
}


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_what_reads_prints_json_and_yaml(agent: Agent, arguments: list[str]) -> None:
    """The same data in both, and a table by default."""
    as_json = json.loads(printed(agent, *arguments, "-o", "json"))
    as_yaml = yaml.safe_load(printed(agent, *arguments, "-o", "yaml"))
    for data in (as_json, as_yaml):
        if isinstance(data, dict) and "status" in data:
            data["status"].pop("resident_bytes")
            data["counters"].pop("verdicts")
    assert as_json == as_yaml
    assert "───" in printed(agent, *arguments)


def table(text: str) -> list[list[str]]:
    """The words of each line of a table."""
    return [line.split() for line in text.splitlines()]


def test_service_list(agent: Agent) -> None:
    """A line for each service."""
    lines = table(printed(agent, "service", "list"))
    assert ["web", "203.0.113.10", "80", "tcp", "2", "-", "251", "yes", "file"] in lines
    assert ["mail", "203.0.113.11", "25", "tcp", "2", "-", "251", "yes", "api"] in lines


def test_a_service_is_shown_with_its_backends(agent: Agent) -> None:
    """All that is known of each."""
    lines = table(printed(agent, "service", "get", "web"))
    assert ["192.0.2.11", "2", "active", "-", "no", "-", "-", "-", "-"] in lines


def test_an_apply_by_force_lets_no_flows_end(agent: Agent) -> None:
    """Without it, backends that are not in the file leave."""
    printed(agent, "service", "apply", services_file(agent, MAIL | {"backends": ["192.0.2.22"]}))
    printed(agent, "service", "apply", services_file(agent, MAIL))
    text = printed(
        agent,
        "service",
        "apply",
        "--force",
        services_file(agent, MAIL | {"backends": ["192.0.2.22"]}),
    )
    assert text.startswith("~mail: ")
    assert listed(agent, "mail") == [("192.0.2.22", "active", 1, 1.0, False)]


def test_backend_list_has_shares(agent: Agent) -> None:
    """By weight."""
    lines = table(printed(agent, "backend", "list", "web"))
    line = ["192.0.2.11", "active", "2", "66.67", "%", "0", "0", "0", "no", "-", "-", "-", "-"]
    assert line in lines


def test_status_says_what_runs(agent: Agent) -> None:
    """Versions, files and limits."""
    text = printed(agent, "status")
    assert str(agent.file) in text
    assert "2 of 64 (1 by file, 1 by api)" in text


def test_a_trace_ends_with_the_verdict(agent: Agent) -> None:
    """In words."""
    lines = printed(agent, "trace", FLOW).splitlines()
    assert lines[3].startswith("service")
    assert "web: 203.0.113.10 port 80/tcp" in lines[3]
    assert lines[-1].startswith("verdict")


def services_file(agent: Agent, *services: dict[str, Any]) -> str:
    """A file with services."""
    path = agent.directory / "services.yaml"
    path.write_text(yaml.safe_dump({"services": list(services)}))
    return str(path)


def test_plan_then_apply(agent: Agent) -> None:
    """The plan says what the apply then does."""
    file = services_file(agent, MAIL | {"backends": ["192.0.2.21"]}, DNS)
    plan = printed(agent, "service", "plan", file)
    assert ["~", "mail", "203.0.113.11:25/tcp", "-", "192.0.2.22"] in [
        line[:5] for line in table(plan)
    ]
    assert names(agent) == {"web", "mail"}
    assert printed(agent, "service", "apply", file).startswith("~mail +dns: ")
    assert names(agent) == {"web", "mail", "dns"}
    assert printed(agent, "service", "plan", file) == "No change.\n"
    assert printed(agent, "service", "apply", file) == "No change.\n"


def test_apply_reads_stdin_and_prunes(agent: Agent) -> None:
    """As in a pipeline."""
    text = yaml.safe_dump({"services": [DNS]})
    ran = agent.command("service", "apply", "--prune", "-", text=text)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("-mail +dns")
    assert names(agent) == {"web", "dns"}


def test_plan_of_a_configuration_file(agent: Agent) -> None:
    """What the agent would do if its file were this one."""
    path = agent.directory / "new.yaml"
    path.write_text(yaml.safe_dump(agent.config | {"services": [WEB | {"flow_table": False}]}))
    plan = json.loads(printed(agent, "service", "plan", "--config", str(path), "-o", "json"))
    assert [(c["action"], c["fields"]) for c in plan["changes"]] == [("change", ["flow_table"])]


def listed(agent: Agent, service: str) -> list[tuple[Any, ...]]:
    """Backends as a program reads them."""
    rows = json.loads(printed(agent, "backend", "list", service, "-o", "json"))
    assert {each["flows"] for each in rows} == {0}
    return [
        tuple(row[n] for n in ("address", "state", "weight", "share", "leaving")) for row in rows
    ]


def test_backends_come_and_go(agent: Agent) -> None:
    """Each command does what it is called."""
    assert printed(agent, "backend", "add", "mail", "192.0.2.23").startswith("~mail: 2 steps")
    assert "has backend 192.0.2.23 already" in refused(
        agent, "backend", "add", "mail", "192.0.2.23"
    )
    printed(agent, "backend", "set", "mail", "192.0.2.23", "--weight", "5")
    assert "has no backend 192.0.2.99; it has: 192.0.2.21," in refused(
        agent, "backend", "set", "mail", "192.0.2.99", "--weight", "5"
    )
    said = printed(agent, "backend", "drain", "mail", "192.0.2.22", "--wait")
    assert said.endswith("no flows remain\n")
    printed(agent, "backend", "remove", "mail", "192.0.2.21", "--force")
    assert listed(agent, "mail") == [
        ("192.0.2.22", "draining", 1, 0.0, False),
        ("192.0.2.23", "active", 5, 1.0, False),
    ]
    printed(agent, "backend", "undrain", "mail", "192.0.2.22")
    printed(agent, "backend", "set", "mail", "192.0.2.23", "--state", "down")
    assert listed(agent, "mail") == [
        ("192.0.2.22", "active", 1, 1.0, False),
        ("192.0.2.23", "down", 5, 0.0, False),
    ]
    assert "has no backend" in refused(agent, "backend", "remove", "mail", "192.0.2.21")


def test_a_service_is_added_without_a_file(agent: Agent) -> None:
    """Once, with all that a file could say."""
    adding = ["service", "add", "dns", "--vip", "203.0.113.53", "--port", "53/udp"]
    adding += ["--backend", "192.0.2.21=3", "--backend", "192.0.2.22", "--table-size", "251"]
    adding += ["--forwarding", "l2", "--affinity", "10m", "--allow-from", "10.0.0.0/8,192.0.2.7"]
    adding += ["--route-from", "10.1.0.0/16,10.2.0.0/16=192.0.2.22"]
    assert printed(agent, *adding, "--allow-from", "198.51.100.0/24").startswith("+dns: ")
    found = json.loads(printed(agent, "service", "get", "dns", "-o", "json"))
    plain_backend: dict[str, Any] = {
        "state": "active",
        "port": None,
        "local": False,
        "server_id": [],
    }
    assert found == {
        "name": "dns",
        "vip": "203.0.113.53",
        "port": 53,
        "protocol": "udp",
        "backends": [
            plain_backend | {"address": "192.0.2.21", "weight": 3, "server_id": []},
            plain_backend | {"address": "192.0.2.22", "weight": 1, "server_id": []},
        ],
        "forwarding": "l2",
        "table_size": 251,
        "flow_table": True,
        "flow_timeout": None,
        "affinity": {"timeout": 600},
        "allow_from": ["10.0.0.0/8", "192.0.2.7/32", "198.51.100.0/24"],
        "health": None,
        "scope": "all",
        "hash_by": "flow",
        "encap": "ipip",
        "encap_port": None,
        "quic": None,
        "route_from": [{"sources": ["10.1.0.0/16", "10.2.0.0/16"], "backends": ["192.0.2.22"]}],
    }
    assert "change it with towpath service set dns" in refused(agent, *adding)
    traced = printed(agent, "trace", "198.51.100.7:1 -> 203.0.113.53:53 udp")
    assert "the packet as it came, to the backend's MAC address" in traced
    assert "no hit: the client's address alone is hashed" in traced
    traced = printed(agent, "trace", "10.2.3.4:1 -> 203.0.113.53:53 udp")
    assert re.search(r"route +from 10.1.0.0/16, 10.2.0.0/16 to 192.0.2.22", traced)
    assert re.search(r"backend +192.0.2.22", traced)
    assert "+dns" not in printed(agent, "service", "set", "dns", "--route-from", "none")
    assert "route " not in printed(agent, "trace", "10.2.3.4:1 -> 203.0.113.53:53 udp")
    traced = printed(agent, "trace", "203.0.113.7:1 -> 203.0.113.53:53 udp")
    assert "drop_source: dropped: the service is not for this source (allow_from)" in traced


def test_connection_ids_are_set_without_a_file(agent: Agent) -> None:
    """Backends' ids, and what of them is refused; a trace says what one says."""
    adding = ["service", "add", "quic", "--vip", "203.0.113.54", "--port", "443/udp"]
    adding += ["--quic", "quic-lb:2:1", "--table-size", "251"]
    named = [*adding, "--backend", "192.0.2.21#17", "--backend", "192.0.2.22=3#41,18"]
    assert "65536 does not fit; allowed: 0 to 65535" in refused(
        agent, *adding, "--backend", "192.0.2.21#65536"
    )
    assert printed(agent, *named).startswith("+quic: ")
    found = json.loads(printed(agent, "service", "get", "quic", "-o", "json"))
    assert found["quic"] == {
        "server_ids": "quic-lb",
        "length": 2,
        "rotation": 1,
        "length_self_description": False,
    }
    ids = [(each["weight"], each["server_id"]) for each in found["backends"]]
    assert ids == [(1, [17]), (3, [18, 41])]
    rows = table(printed(agent, "service", "get", "quic"))
    assert ["192.0.2.22", "3", "active", "-", "no", "18,41"] in [row[:6] for row in rows]
    traced = "198.51.100.7:1 -> 203.0.113.54:443 udp quic 200011c05e2b77f3"
    assert "it names the backend" in printed(agent, "trace", traced)
    assert json.loads(printed(agent, "trace", traced, "-o", "json"))["backend"] == "192.0.2.21"
    changing = ["backend", "set", "quic", "192.0.2.21", "--server-id"]
    assert "18 is that of" in refused(agent, *changing, "18")
    wrong = agent.command(*changing, "19,x")
    assert (wrong.returncode, "'x' is not a whole number" in wrong.stderr) == (2, True)
    assert printed(agent, *changing, "19,17").startswith("~quic: 1 steps")
    assert "it names the backend" in printed(agent, "trace", traced)
    assert printed(agent, *changing, "19").startswith("~quic: ")
    assert "it names nobody" in printed(agent, "trace", traced)
    assert printed(agent, *changing, "none").startswith("~quic: ")
    assert table(printed(agent, "service", "counters", "quic"))[-1] == ["down", "0"]
    assert printed(agent, "service", "set", "quic", "--quic", "katran").startswith("~quic: ")
    assert "18, 41 are for connection ids" in refused(
        agent, "service", "set", "quic", "--quic", "none"
    )
    printed(agent, "service", "delete", "quic")


def test_a_service_is_changed_without_a_file(agent: Agent) -> None:
    """What isn't named stays."""

    def options() -> tuple[object, ...]:
        found = json.loads(printed(agent, "service", "get", "mail", "-o", "json"))
        return tuple(found[n] for n in ("forwarding", "affinity", "allow_from", "flow_table"))

    before = json.loads(printed(agent, "service", "get", "mail", "-o", "json"))["backends"]
    for arguments, expected in (
        (["--affinity", "3h"], ("dsr", {"timeout": 10800}, None, True)),
        (["--forwarding", "l2", "--no-flow-table"], ("l2", {"timeout": 10800}, None, False)),
        (["--allow-from", "10.0.0.0/8"], ("l2", {"timeout": 10800}, ["10.0.0.0/8"], False)),
        (["--affinity", "none", "--flow-table"], ("l2", None, ["10.0.0.0/8"], True)),
        (["--allow-from", "any", "--forwarding", "dsr"], ("dsr", None, None, True)),
    ):
        assert printed(agent, "service", "set", "mail", *arguments).startswith("~mail: ")
        assert options() == expected
    after = json.loads(printed(agent, "service", "get", "mail", "-o", "json"))["backends"]
    assert after == before
    wrong = refused(agent, "service", "set", "mail", "--affinity", "8d")
    assert "affinity.timeout: '8d' is out of range" in wrong
    assert agent.command("service", "set", "mail").returncode == 2
    assert "belongs to the configuration file" in refused(
        agent, "service", "set", "web", "--affinity", "3h"
    )


def test_what_becomes_of_flows_is_set_without_a_file(agent: Agent) -> None:
    """How long those of UDP last, how backends are checked, and whose flows then leave."""

    def options() -> tuple[object, ...]:
        found = json.loads(printed(agent, "service", "get", "syslog", "-o", "json"))
        health = found["health"]
        return found["flow_timeout"], health and (health["type"], health["on_down"])

    adding = ["service", "add", "syslog", "--vip", "203.0.113.53", "--port", "514/udp"]
    adding += ["--backend", "192.0.2.21", "--flow-timeout", "90s", "--health", "tcp"]
    assert printed(agent, *adding, "--on-down", "keep").startswith("+syslog: ")
    assert options() == (90, ("tcp", "keep"))
    for arguments, expected in (
        (["--flow-timeout", "default", "--on-down", "move"], (None, ("tcp", "move"))),
        (["--health", "http", "--flow-timeout", "30m"], (1800, ("http", "move"))),
        (["--on-down", "default"], (1800, ("http", None))),
        (["--health", "none"], (1800, None)),
        (["--health", "tcp", "--on-down", "keep"], (1800, ("tcp", "keep"))),
    ):
        assert printed(agent, "service", "set", "syslog", *arguments).startswith("~syslog: ")
        assert options() == expected
    table = printed(agent, "service", "get", "syslog")
    assert "flow_timeout" in table
    assert "health.on_down" in table
    for name, arguments, wrong in (
        ("syslog", ["--flow-timeout", "31m"], "flow_timeout: '31m' is out of range"),
        ("mail", ["--flow-timeout", "30s"], "flow_timeout: is for protocol udp, and this is tcp"),
        ("mail", ["--on-down", "move"], "health.type: is missing"),
    ):
        assert wrong in refused(agent, "service", "set", name, *arguments)
    assert agent.command("service", "set", "syslog", "--on-down", "stay").returncode == 2
    printed(agent, "service", "delete", "syslog")


def test_a_deleted_service_is_gone(agent: Agent) -> None:
    """And can't be deleted again."""
    assert printed(agent, "service", "delete", "mail").startswith("-mail: ")
    error = "Error: there is no service 'mail'; there are: web\n"
    assert refused(agent, "service", "delete", "mail") == error


def test_the_files_services_are_refused(agent: Agent) -> None:
    """In one line, with where to change them."""
    error = "service 'web' belongs to the configuration file; change it there\n"
    assert refused(agent, "service", "delete", "web").endswith(error)
    assert refused(agent, "backend", "remove", "web", "192.0.2.11").endswith(error)
    assert refused(agent, "service", "apply", services_file(agent, WEB)).endswith(error)
