# SPDX-License-Identifier: Apache-2.0
"""The API's contract, on a real agent: every path, and every field's wrong values."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_agent import DEVICE, MAIL, WEB, Agent, running

from towpath.api.client import Client
from towpath.lab.waiting import wait_until
from towpath.model import parse_service

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULTS = {
    "protocol": "tcp",
    "forwarding": "dsr",
    "flow_table": True,
    "flow_timeout": None,
    "affinity": None,
    "allow_from": None,
    "health": None,
    "scope": "all",
    "hash_by": "flow",
    "encap": "ipip",
    "encap_port": None,
    "quic": None,
    "route_from": [],
}


PLAIN = {"weight": 1, "state": "active", "port": None, "local": False, "server_id": []}
"""A backend's defaults."""


def full(service: dict[str, Any]) -> dict[str, Any]:
    """A service with its defaults, as the API answers it."""
    backends = [PLAIN | backend for backend in service["backends"]]
    return DEFAULTS | service | {"backends": backends}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for the module, with WEB from its file."""
    with running(tmp_path_factory.mktemp("agent")) as agent:
        yield agent


@pytest.fixture
def agent(shared: Agent) -> Agent:
    """The agent, with nothing but WEB and MAIL."""
    wish = {"services": [MAIL], "prune": True, "force": True}
    status, _ = shared.request("POST", "/v1/apply", wish)
    assert status == 200
    return shared


def services(agent: Agent) -> Any:
    """What the agent says it has."""
    return agent.request("GET", "/v1/services")[1]


def test_services_are_listed_with_their_owners(agent: Agent) -> None:
    """Those of the file and those of the API."""
    assert agent.request("GET", "/v1/services") == (
        200,
        [{"owner": "file", "service": full(WEB)}, {"owner": "api", "service": full(MAIL)}],
    )


def test_one_service(agent: Agent) -> None:
    """By its name."""
    found = agent.request("GET", "/v1/services/mail")
    assert found == (200, {"owner": "api", "service": full(MAIL)})


def test_what_was_got_can_be_put(agent: Agent) -> None:
    """Unchanged: a plan without changes."""
    _, entry = agent.request("GET", "/v1/services/mail")
    answer = agent.request("PUT", "/v1/services/mail", entry["service"])
    assert answer == (200, {"changes": [], "steps": 0, "moved": 0.0})


def test_a_put_adds_and_replaces(agent: Agent) -> None:
    """And says what that changed."""
    dns = MAIL | {"name": "dns", "port": 53, "protocol": "udp"}
    status, plan = agent.request("PUT", "/v1/services/dns", dns)
    assert status == 200
    (change,) = plan["changes"]
    assert change["action"] == "add"
    assert change["service"] == {
        "name": "dns",
        "vip": "203.0.113.11",
        "port": 53,
        "protocol": "udp",
        "scope": "all",
    }
    assert change["backends_added"] == ["192.0.2.21", "192.0.2.22"]
    status, plan = agent.request("PUT", "/v1/services/dns", dns | {"flow_table": False})
    (change,) = plan["changes"]
    assert (status, change["action"], change["fields"]) == (200, "change", ["flow_table"])
    assert agent.request("GET", "/v1/services/dns")[1]["service"]["flow_table"] is False


def test_options_are_put_and_got(agent: Agent) -> None:
    """As they are meant: seconds, and the fewest prefixes."""
    options = {"forwarding": "l2", "affinity": "1h", "allow_from": ["10.0.0.0/9", "10.128.0.0/9"]}
    status, plan = agent.request("PUT", "/v1/services/mail", MAIL | options)
    (change,) = plan["changes"]
    assert (status, change["fields"]) == (200, ["forwarding", "affinity", "allow_from"])
    _, entry = agent.request("GET", "/v1/services/mail")
    meant = {"forwarding": "l2", "affinity": {"timeout": 3600}, "allow_from": ["10.0.0.0/8"]}
    assert entry["service"] == full(MAIL) | meant
    unchanged = agent.request("PUT", "/v1/services/mail", entry["service"])
    assert unchanged == (200, {"changes": [], "steps": 0, "moved": 0.0})


def test_flows_of_udp_have_their_options(agent: Agent) -> None:
    """How long they last, and whether they stay with a backend that is down."""
    dns = MAIL | {"name": "dns", "port": "53/udp"}
    options = {"flow_timeout": "90s", "health": {"type": "tcp", "on_down": "keep"}}
    status, _ = agent.request("PUT", "/v1/services/dns", dns | options)
    assert status == 200
    _, entry = agent.request("GET", "/v1/services/dns")
    found = entry["service"]
    assert (found["flow_timeout"], found["health"]["on_down"]) == (90, "keep")
    changed = found | {"flow_timeout": None}
    changed["health"] = changed["health"] | {"on_down": None}
    status, plan = agent.request("PUT", "/v1/services/dns", changed)
    assert (status, plan["changes"][0]["fields"]) == (200, ["flow_timeout", "health"])
    for wrong, message in (
        ({"flow_timeout": 0}, "flow_timeout: 0 is out of range"),
        ({"flow_timeout": 90, "port": 53, "protocol": "tcp"}, "flow_timeout: is for protocol udp"),
        ({"health": {"type": "tcp", "on_down": "stay"}}, "health.on_down: 'stay' is not known"),
    ):
        status, answer = agent.request("PUT", "/v1/services/dns", changed | wrong)
        assert status == 422
        (problem,) = answer["problems"]
        assert f"{problem['field']}: {problem['message']}".startswith(message)
    agent.request("DELETE", "/v1/services/dns")


def test_more_sources_than_there_is_room_for_are_refused(agent: Agent) -> None:
    """Saying how many there is room for; nothing is changed."""
    before = services(agent)
    many = [f"10.{n}.{m}.1" for n in range(8) for m in range(100)]
    status, answer = agent.request("PUT", "/v1/services/mail", MAIL | {"allow_from": many})
    message = "sources: 800 needed, 500 at most; raise limits.sources and restart"
    assert (status, answer["problems"][0]["message"]) == (409, message)
    assert services(agent) == before


def test_a_delete_removes(agent: Agent) -> None:
    """Once."""
    status, plan = agent.request("DELETE", "/v1/services/mail")
    assert (status, plan["changes"][0]["action"]) == (200, "remove")
    status, problems = agent.request("DELETE", "/v1/services/mail")
    assert status == 404
    assert problems["problems"][0]["message"] == "there is no service 'mail'; there are: web"


def test_backends_one_by_one(agent: Agent) -> None:
    """Listed, added, weighted, removed."""
    path = "/v1/services/mail/backends"
    status, plan = agent.request("PUT", f"{path}/192.0.2.23", {"weight": 3})
    assert (status, plan["changes"][0]["backends_added"]) == (200, ["192.0.2.23"])
    status, plan = agent.request("PUT", f"{path}/192.0.2.23", {"weight": 0})
    assert (status, plan["changes"][0]["backends_reweighted"]) == (200, ["192.0.2.23"])
    status, plan = agent.request("PUT", f"{path}/192.0.2.23", {"state": "draining"})
    assert (status, plan["changes"][0]["backends_restated"]) == (200, ["192.0.2.23"])
    for ids, named in ((7, "7 is"), ([8, 7], "7, 8 are")):
        status, wrong = agent.request("PUT", f"{path}/192.0.2.23", {"server_id": ids})
        message = wrong["problems"][0]["message"]
        assert (status, message.partition(" for connection ids")[0]) == (422, named)
    status, plan = agent.request("PUT", f"{path}/192.0.2.23", {"server_id": []})
    assert (status, plan["changes"]) == (200, [])
    assert agent.request("PUT", f"{path}/192.0.2.23", {"server_id": -1})[0] == 422
    status, plan = agent.request("DELETE", f"{path}/192.0.2.21")
    assert (status, plan["changes"][0]["backends_removed"]) == (200, ["192.0.2.21"])
    assert plan["changes"][0]["backends_leaving"] == ["192.0.2.21"]
    assert agent.request("GET", path) == (
        200,
        [
            PLAIN | {"address": "192.0.2.22", "weight": 1},
            {
                "address": "192.0.2.23",
                "weight": 0,
                "state": "draining",
                "port": None,
                "local": False,
                "server_id": [],
            },
        ],
    )


def test_status_of_backends(agent: Agent) -> None:
    """Of those that were removed too, with when they go."""
    path = "/v1/services/mail/backends"
    agent.request("PUT", f"{path}/192.0.2.29", {"state": "quarantined"})
    assert agent.request("DELETE", f"{path}/192.0.2.21")[0] == 200
    status, found = agent.request("GET", f"{path}/status")
    assert status == 200
    rows = {row["address"]: row for row in found}
    nothing = {
        "flows": 0,
        "leaving": False,
        "since": None,
        "until": None,
        "trouble": None,
        "local": False,
    }
    assert rows["192.0.2.29"] == {"address": "192.0.2.29", "state": "quarantined"} | nothing
    # Without flows it may be gone already.
    if gone := rows.get("192.0.2.21"):
        assert (gone["state"], gone["leaving"]) == ("draining", True)
        since, until = (datetime.fromisoformat(gone[name]) for name in ("since", "until"))
        assert (until - since).total_seconds() == 600
    assert agent.request("DELETE", f"{path}/192.0.2.29?force=true")[0] == 200
    assert "192.0.2.29" not in {row["address"] for row in agent.request("GET", f"{path}/status")[1]}
    assert agent.request("GET", "/v1/services/nobody/backends/status")[0] == 404
    assert agent.request("DELETE", f"{path}/192.0.2.22?force=perhaps")[0] == 422
    assert agent.request("PUT", f"{path}/192.0.2.22", {"state": "ill"})[0] == 422


def test_backends_all_at_once(agent: Agent) -> None:
    """As addresses, or with weights."""
    path = "/v1/services/mail/backends"
    body = ["192.0.2.31", {"address": "2001:db8:1::2", "weight": 7}]
    assert agent.request("PUT", path, body)[0] == 200
    assert agent.request("GET", path)[1] == [
        PLAIN | {"address": "192.0.2.31", "weight": 1},
        PLAIN | {"address": "2001:db8:1::2", "weight": 7},
    ]


def test_an_apply_is_all_or_nothing(agent: Agent) -> None:
    """The right service beside the wrong one is not added."""
    dns = MAIL | {"name": "dns", "port": 53}
    before = services(agent)
    body = {"services": [dns, MAIL | {"name": "bad", "port": 0}]}
    status, answer = agent.request("POST", "/v1/apply", body)
    assert status == 422
    assert [problem["field"] for problem in answer["problems"]] == ["services[1].port"]
    assert services(agent) == before


def test_pruning_leaves_the_files_services(agent: Agent) -> None:
    """And removes the API's that are not listed."""
    dns = MAIL | {"name": "dns", "port": 53}
    assert agent.request("POST", "/v1/apply", {"services": [dns], "prune": True})[0] == 200
    assert [each["service"]["name"] for each in services(agent)] == ["web", "dns"]


def test_a_plan_changes_nothing(agent: Agent) -> None:
    """And says what share of new flows would move."""
    before = services(agent)
    body = {"services": [MAIL | {"backends": [{"address": "192.0.2.21"}]}]}
    status, plan = agent.request("POST", "/v1/plan", body)
    assert status == 200
    (change,) = plan["changes"]
    assert change["backends_removed"] == ["192.0.2.22"]
    assert change["moved"] == pytest.approx(0.5, abs=0.02)
    assert plan["moved"] == pytest.approx(0.25, abs=0.01)
    assert services(agent) == before


def test_a_plan_for_the_file(agent: Agent) -> None:
    """What a new configuration file would do: its services are all there are of the file's."""
    body = {"services": [], "owner": "file"}
    status, plan = agent.request("POST", "/v1/plan", body)
    assert status == 200
    named = [(change["action"], change["service"]["name"]) for change in plan["changes"]]
    assert named == [("remove", "web")]


def test_a_trace_says_which_backend_and_why(agent: Agent) -> None:
    """Without changing any counter."""
    before = agent.request("GET", "/v1/counters")[1]["services"]
    flow = "198.51.100.7:40000%20-%3E%20203.0.113.10:80%20tcp"
    status, trace = agent.request("GET", f"/v1/trace?flow={flow}&device={DEVICE}")
    assert status == 200
    assert trace["service"]["name"] == "web"
    assert trace["backend"] in {"192.0.2.11", "192.0.2.12"}
    assert trace["flow_hit"] is False
    assert trace["table_size"] == 251
    assert trace["encapsulation"] == "ipip"
    assert agent.request("GET", "/v1/counters")[1]["services"] == before


def test_counters_have_every_service_and_backend(agent: Agent) -> None:
    """From the start, at zero."""
    status, counters = agent.request("GET", "/v1/counters")
    assert status == 200
    assert "drop_no_backend" in counters["verdicts"]
    web = counters["services"][0]
    assert web["service"]["name"] == "web"
    assert [each["address"] for each in web["backends"]] == ["192.0.2.11", "192.0.2.12"]


def test_status_and_health(agent: Agent) -> None:
    """The agent about itself."""
    assert agent.request("GET", "/v1/health") == (200, {"status": "ok"})
    status, found = agent.request("GET", "/v1/status")
    assert status == 200
    assert found["services"] == {"file": 1, "api": 1}
    assert found["limits"]["backends"]["used"] == 4
    assert found["file"]["path"] == str(agent.file)
    device = {"name": DEVICE, "mode": "auto", "attach": "link", "priority": None}
    assert found["devices"] == [device]


def test_checks_are_listed(agent: Agent) -> None:
    """Of services that have one, with where each backend stands; nobody answers here."""
    assert agent.request("GET", "/v1/checks") == (200, [])
    checked = MAIL | {"health": {"type": "tcp", "interval": "100ms", "timeout": "50ms"}}
    assert agent.request("POST", "/v1/apply", {"services": [checked]})[0] == 200

    def down() -> bool:
        status, found = agent.request("GET", "/v1/checks?service=mail")
        assert status == 200
        return [each["state"] for each in found] == ["down", "down"]

    wait_until(down, seconds=120, what="the checks to fail")
    (first, second) = agent.request("GET", "/v1/checks")[1]
    assert [first["backend"], second["backend"]] == ["192.0.2.21", "192.0.2.22"]
    assert first["service"]["name"] == "mail"
    assert (first["type"], first["error"]) == ("tcp", "no answer within 0.05 s")
    assert first["failed"] >= 3
    assert (first["passed"], first["unmade"]) == (0, 0)
    assert agent.request("GET", "/v1/status")[1]["checks"] == {"down": 2}
    status, answer = agent.request("GET", "/v1/checks?service=nobody")
    assert (status, answer["problems"][0]["message"][:31]) == (
        404,
        "there is no service 'nobody'; t",
    )
    assert agent.request("POST", "/v1/apply", {"services": [MAIL]})[0] == 200


def test_openapi_describes_it(agent: Agent) -> None:
    """With the model's own limits."""
    status, document = agent.request("GET", "/v1/openapi.json")
    assert status == 200
    port = document["components"]["schemas"]["Service"]["properties"]["port"]
    one, text, several = port["anyOf"]
    assert (one["minimum"], one["maximum"]) == (1, 65535)
    assert (text["examples"], several["items"]["anyOf"]) == (["8000-8999"], [one, text])
    named = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert "Problems" in named
    assert named <= document["components"]["schemas"].keys()
    assert set(document["paths"]) == {
        "/v1/sources/{name}/accept",
        "/v1/services",
        "/v1/services/{name}",
        "/v1/services/{name}/backends",
        "/v1/services/{name}/backends/status",
        "/v1/services/{name}/backends/{address}",
        "/v1/apply",
        "/v1/captures",
        "/v1/captures/{number}",
        "/v1/plan",
        "/v1/health",
        "/v1/status",
        "/v1/checks",
        "/v1/counters",
        "/v1/services/{name}/counters",
        "/v1/flows",
        "/v1/flows/count",
        "/v1/trace",
        "/v1/next-hops",
        "/v1/route",
        "/v1/unreached",
        "/metrics",
    }


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "allowed: letters, digits"),
    ({"name": 7}, "name", "put it in quotes"),
    ({"name": "other"}, "name", "is not the name in the path"),
    ({"vip": "203.0.113.300"}, "vip", "allowed: a unicast"),
    ({"vip": "224.0.0.1"}, "vip", "multicast"),
    ({"port": 0}, "port", "allowed: 1 to 65535"),
    ({"port": 65536}, "port", "allowed: 1 to 65535"),
    ({"port": "http"}, "port", "neither a port nor a range"),
    ({"port": True}, "port", "neither a port nor a range"),
    ({"port": "90-80"}, "port", "allowed: 80-90"),
    ({"port": [80, 65536]}, "port", "allowed: 1 to 65535"),
    ({"port": []}, "port", "allowed: a port (1 to 65535), a range such as 8000-8999"),
    ({"vip": "203.0.113.8/28"}, "vip", "203.0.113.0/28"),
    ({"vip": "0.0.0.0/0"}, "vip", "/8"),
    ({"protocol": "sctp"}, "protocol", "allowed: tcp, udp"),
    ({"forwarding": "nat"}, "forwarding", "allowed: dsr, l2"),
    ({"affinity": {"timeout": 0}}, "affinity.timeout", "1s to 7d"),
    ({"affinity": {"sticky": 5}}, "affinity.sticky", "unknown key; allowed: timeout"),
    ({"allow_from": []}, "allow_from", "no list for everyone"),
    ({"allow_from": ["10.0.0.1/8"]}, "allow_from", "allowed: 10.0.0.0/8, or 10.0.0.1 alone"),
    ({"allow_from": ["2001:db8::/32"]}, "allow_from", "has no IPv4 prefix"),
    (
        {"route_from": [{"sources": ["10.0.0.0/8"], "backends": ["192.0.2.99"]}]},
        "route_from[0].backends",
        "no backend of the service; allowed: 192.0.2.21",
    ),
    ({"table_size": 252}, "table_size", "251 and 257"),
    ({"table_size": 2}, "table_size", "allowed: a prime from 251 to 4194301"),
    ({"flow_table": "yes"}, "flow_table", "allowed: true, false"),
    ({"colour": "red"}, "colour", "unknown key; allowed: name, vip"),
    ({"backends": "192.0.2.1"}, "backends", "is not a list"),
    ({"backends": [{"address": "x"}]}, "backends[0].address", "allowed: a unicast"),
    ({"backends": [{"weight": 1}]}, "backends[0].address", "is missing"),
    (
        {"backends": [{"address": "192.0.2.1", "weight": -1}]},
        "backends[0].weight",
        "allowed: 0 to 65535",
    ),
    (
        {"backends": [{"address": "192.0.2.1", "speed": 1}]},
        "backends[0].speed",
        "unknown key; allowed: address, weight",
    ),
    ({"backends": ["192.0.2.1", "192.0.2.1"]}, "backends[1].address", "listed twice"),
    ({"vip": "2001:db8::10", "backends": ["192.0.2.1"]}, "backends[0].address", "is IPv4"),
]


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    WRONG,
    ids=[str(case[0])[1:-1] for case in WRONG],
)
def test_a_wrong_value_is_refused(
    agent: Agent, wrong: dict[str, Any], field: str, message: str
) -> None:
    """With its field, what is wrong and what is allowed; nothing is changed."""
    before = services(agent)
    status, answer = agent.request("PUT", "/v1/services/mail", MAIL | wrong)
    assert status == 422
    (problem,) = answer["problems"]
    assert problem["field"] == field
    assert message in problem["message"]
    assert services(agent) == before


@pytest.mark.parametrize("field", ["name", "vip", "port"])
def test_a_missing_value_is_refused(agent: Agent, field: str) -> None:
    """Naming it."""
    body = {key: value for key, value in MAIL.items() if key != field}
    status, answer = agent.request("PUT", "/v1/services/mail", body)
    assert status == 422
    assert answer["problems"][0]["field"] == field
    assert answer["problems"][0]["message"] == "is missing"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field", "message"),
    [
        ("PUT", "/v1/services/mail", b"{", 400, "", "the body is not JSON"),
        ("PUT", "/v1/services/mail", [], 422, "", "is not a mapping"),
        ("PUT", "/v1/services/mail", b"", 422, "", "is missing"),
        ("POST", "/v1/apply", {}, 422, "services", "is missing"),
        ("POST", "/v1/apply", {"services": [], "x": 1}, 422, "x", "unknown key"),
        ("POST", "/v1/plan", {"services": [], "owner": "me"}, 422, "owner", "'file' or 'api'"),
        ("POST", "/v1/apply", {"services": [MAIL, MAIL]}, 422, "services[1].name", "is taken by"),
        ("PUT", "/v1/services/mail/backends/x", {}, 422, "address", "allowed: a unicast"),
        (
            "PUT",
            "/v1/services/mail/backends/192.0.2.9",
            {"weight": 65536},
            422,
            "weight",
            "allowed: 0 to 65535",
        ),
        (
            "PUT",
            "/v1/services/mail/backends",
            [{"address": "192.0.2.1", "weight": -1}],
            422,
            "backends[0].weight",
            "allowed: 0 to 65535",
        ),
        ("PUT", "/v1/services/mail/backends", {}, 422, "", "is not a list"),
        ("DELETE", "/v1/services/mail/backends/192.0.2.9", None, 404, "", "has no backend"),
        ("GET", "/v1/services/x", None, 404, "", "there is no service 'x'"),
        ("GET", "/v1/services/x/backends", None, 404, "", "there is no service 'x'"),
        ("PUT", "/v1/services/x/backends/192.0.2.9", {}, 404, "", "there is no service 'x'"),
        ("GET", "/v1/trace", None, 422, "flow", "is missing"),
        ("GET", "/v1/trace?flow=x", None, 422, "flow", "is not a flow"),
        (
            "GET",
            "/v1/trace?flow=192.0.2.1:1-%3E192.0.2.2:2&device=no",
            None,
            409,
            "",
            f"not on device no; on: {DEVICE}",
        ),
        ("GET", "/v1/nonsense", None, 404, "", "GET /v1/nonsense: Not Found; see /v1/openapi"),
        ("PATCH", "/v1/services/mail", {}, 405, "", "Method Not Allowed"),
    ],
)
def test_a_wrong_request_is_refused(
    agent: Agent, method: str, path: str, body: object, status: int, field: str, message: str
) -> None:
    """In the same form, whatever is wrong; nothing is changed."""
    before = services(agent)
    found, answer = agent.request(method, path, body)
    assert found == status
    assert answer["problems"][0]["field"] == field
    assert message in answer["problems"][0]["message"]
    assert services(agent) == before


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/services/web", WEB),
        ("DELETE", "/v1/services/web", None),
        ("PUT", "/v1/services/web/backends", []),
        ("PUT", "/v1/services/web/backends/192.0.2.99", {}),
        ("DELETE", "/v1/services/web/backends/192.0.2.11", None),
        ("POST", "/v1/apply", {"services": [WEB]}),
        ("POST", "/v1/plan", {"services": [WEB]}),
    ],
)
def test_the_files_services_are_the_files(
    agent: Agent, method: str, path: str, body: object
) -> None:
    """409, and where to change them instead."""
    before = services(agent)
    status, answer = agent.request(method, path, body)
    assert status == 409
    message = "service 'web' belongs to the configuration file; change it there"
    assert answer["problems"][0]["message"] == message
    assert services(agent) == before


def test_a_vip_of_the_file_is_taken(agent: Agent) -> None:
    """409, naming who has it."""
    status, answer = agent.request("PUT", "/v1/services/mine", WEB | {"name": "mine"})
    assert status == 409
    assert "is already that of service 'web' (file)" in answer["problems"][0]["message"]


def test_what_does_not_fit_is_refused_whole(agent: Agent) -> None:
    """409, naming the limit to raise."""
    before = services(agent)
    big = [MAIL | {"name": f"s{i}", "port": 1000 + i, "table_size": 65537} for i in range(4)]
    status, answer = agent.request("POST", "/v1/apply", {"services": big})
    assert status == 409
    assert "limits.table_slots" in answer["problems"][0]["message"]
    assert services(agent) == before


def test_many_at_once_lose_nothing(agent: Agent) -> None:
    """Edits of one service from many connections are made one after the other."""

    def add(number: int) -> int:
        path = f"/v1/services/mail/backends/198.51.100.{number}"
        return agent.request("PUT", path, {"weight": number})[0]

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(add, range(1, 101))) == {200}
    found = agent.request("GET", "/v1/services/mail/backends")[1]
    added = {each["address"]: each["weight"] for each in found}
    assert all(added[f"198.51.100.{number}"] == number for number in range(1, 101))


def test_the_client_speaks_all_of_it(agent: Agent) -> None:
    """Typed: what goes in comes out."""
    with Client(agent.socket) as client:
        mail = client.service("mail")
        assert mail == parse_service(MAIL)
        dns = client.add_service("dns", vip="203.0.113.12", port=53, backends=["192.0.2.31"])
        assert client.service("dns") == dns
        assert client.remove_service("dns").changes[0].action == "remove"
        assert [str(entry.owner) for entry in client.entries()] == ["file", "api"]
        assert client.set_backends("mail", ["192.0.2.21"]).moved > 0
        client.set_backend("mail", "192.0.2.22", 5)
        assert [backend.weight for backend in client.backends("mail")] == [1, 5]
        client.remove_backend("mail", "192.0.2.22")
        assert client.plan([mail]).changes[0].service.name == "mail"
        assert client.apply([mail]).steps > 0
        assert client.trace("198.51.100.7:1 -> 203.0.113.11:25").verdict != "pass_no_vip"
        assert client.counters().services[0].service.name == "web"
        assert 'towpath_service_packets_total{port="80"' in client.metrics()
        client.health()
