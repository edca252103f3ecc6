# SPDX-License-Identifier: Apache-2.0
"""``towpath import``: what is printed where, and what a configuration file takes of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner

from towpath.cli.imported import LEFT_OUT
from towpath.cli.main import cli
from towpath.model import parse_config, parse_services

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

CONF = """\
vrrp_instance VI_1 {
}
include parts/*.conf
"""
PART = """\
virtual_server 203.0.113.10 80 {
    lb_kind NAT
    protocol TCP
    persistence_timeout 50
    quorum 2
    delay_loop 6
    real_server 192.0.2.11 8080 {
        weight 3
        HTTP_GET {
            url {
                path /ready
                status_code 200
            }
        }
    }
}
virtual_server fwmark 7 {
    real_server 192.0.2.11 {
    }
}
"""
PRINTED = """\
# towpath import keepalived {file}
# scheduler wlc: flows are shared out by a hash of their addresses and ports, in proportion to
#   weights; how many connections a server has isn't looked at ({part}:1)
"""
SERVICE = """\
services:
  # quorum 2: backends that are up get flows, however few they are ({part}:5)
  - name: tcp-203.0.113.10-80
    vip: 203.0.113.10
    port: 80
    backends:
    - address: 192.0.2.11
      weight: 3
      port: 8080
    forwarding: snat
    affinity: 50s
    health:
      type: http
      interval: 6
      timeout: 5
      rise: 1
      fall: 2
      path: /ready
      status: 200
      on_all_failed: closed
"""


def run(*arguments: str, given: str | None = None) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["import", *arguments], prog_name="towpath", input=given)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keepalived.conf that includes another file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "web.conf").write_text(PART)
    (tmp_path / "parts" / ".web.conf.swp").write_text("nonsense\n")
    (tmp_path / "keepalived.conf").write_text(CONF)
    return tmp_path / "keepalived.conf"


def test_services_and_notes(conf: Path) -> None:
    """On stdout YAML with what differs beside it, on stderr what isn't there."""
    ran = run("keepalived", conf.name)
    assert ran.exit_code == LEFT_OUT
    assert ran.stdout.startswith(PRINTED.format(file=conf.name, part="parts/web.conf"))
    assert ran.stdout.endswith(SERVICE.format(part="parts/web.conf"))
    assert [line.partition(": ")[0] for line in ran.stderr.splitlines()] == [
        "keepalived.conf:1",
        "parts/web.conf:17",
        "services",
    ]
    assert "firewall mark 7: left out: packets are chosen by" in ran.stderr
    assert ran.stderr.endswith("services: 1 printed, 1 left out\n")


def test_what_is_printed_is_a_configuration(conf: Path) -> None:
    """With devices before it and what it says it needs, and by itself for `service apply`."""
    printed = run("keepalived", conf.name).stdout
    assert "# snat.ipv4: services with forwarding snat need addresses" in printed
    before = "devices: [eth0]\nsnat: {ipv4: [192.0.2.1]}\n"
    config = parse_config(before + printed, "towpath.yaml")
    assert config.services == parse_services(printed, "services.yaml")
    assert config.services[0].affinity is not None


def test_json(conf: Path) -> None:
    """Services and notes, each with kind, place and service."""
    ran = run("keepalived", str(conf), "-o", "json")
    data = json.loads(ran.stdout)
    assert [each["name"] for each in data["services"]] == ["tcp-203.0.113.10-80"]
    by_kind = {each["kind"]: each for each in data["notes"]}
    assert set(by_kind) == {"differs", "needs", "left-out", "elsewhere"}
    assert by_kind["left-out"]["line"] == 17
    assert by_kind["elsewhere"]["what"] == "vrrp_instance VI_1"
    quorum = next(each for each in data["notes"] if each["what"] == "quorum 2")
    assert quorum["service"] == "tcp-203.0.113.10-80"
    assert ran.stderr == "services: 1 printed, 1 left out\n"


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ([], "-A -t 203.0.113.10:80 -s rr\n"),
        (["--from", "ipvsadm"], "-A -t 203.0.113.10:80\n"),
        ([], "IP Virtual Server version 1.2.1 (size=4096)\nTCP  CB00710A:0050 rr\n"),
        (["--from", "proc"], "TCP  CB00710A:0050 rr\n"),
        (["--hz", "100"], "IP Virtual Server version 1.2.1 (size=4096)\nTCP  CB00710A:0050 rr\n"),
        ([], "virtual_server 203.0.113.10 80 {\nprotocol TCP\n}\n"),
        (["--from", "keepalived"], "virtual_server 203.0.113.10 80 {\nprotocol TCP\n}\n"),
    ],
)
def test_ipvs_of_a_text(options: list[str], given: str) -> None:
    """Of whichever form, from stdin."""
    ran = run("ipvs", "-", *options, given=given)
    assert ran.exit_code == 0
    (service,) = parse_services(ran.stdout, "printed")
    assert str(service.key) == "203.0.113.10:80/tcp"


def test_times_of_another_kernel() -> None:
    """Its jiffies are as many as it says."""
    given = "TCP  CB00710A:0050 rr persistent 30000 FFFFFFFF\n"
    ran = run("ipvs", "-", "--from", "proc", "--hz", "100", given=given)
    assert yaml.safe_load(ran.stdout)["services"][0]["affinity"] == "5m"


def test_which_lines_are_meant() -> None:
    """By --config-id, else by this host's name."""
    text = (
        "virtual_server 203.0.113.10 80 {\nprotocol TCP\n@lb7 lb_kind DR\n"
        "real_server 192.0.2.11 80 { }\n}\n"
    )
    ran = run("keepalived", "-", "--config-id", "lb7", given=text)
    assert parse_services(ran.stdout, "printed")[0].forwarding == "l2"
    assert parse_services(run("keepalived", "-", given=text).stdout, "x")[0].forwarding == "snat"


def test_katran(tmp_path: Path) -> None:
    """A script."""
    script = tmp_path / "setup.sh"
    script.write_text("katran_goclient -A -t 203.0.113.10:80\nkatran_goclient -change_mac x\n")
    ran = run("katran", str(script))
    assert ran.exit_code == 0
    assert parse_services(ran.stdout, "printed")[0].name == "tcp-203.0.113.10-80"
    assert ran.stderr.startswith(f"{script}:2: -change_mac: not carried over: the next hop is")


def test_nothing_to_print() -> None:
    """Is a list without services."""
    ran = run("ipvs", "-", given="")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert parse_services(ran.stdout, "printed") == ()


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (["ipvs", "-"], "-A -t web:http\n", "Error: stdin:1: -t 'web:http' is not an address"),
        (["keepalived", "-"], "nonsense\n", "Error: stdin:1: 'nonsense' is not known here"),
        (["katran", "-"], "nonsense\n", "Error: stdin:1: 'nonsense' is not katran_goclient"),
        (["katran", "none.sh"], "", "none.sh"),
    ],
)
def test_what_is_wrong_is_1(arguments: list[str], given: str, message: str) -> None:
    """Nothing is printed then."""
    ran = run(*arguments, given=given)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert message in ran.stderr


def test_escapes_stay_text() -> None:
    """A terminal is told nothing by a file."""
    text = 'virtual_server 203.0.113.10 80 {\nprotocol TCP\nquorum_up "\x1b[31m"\n}\n'
    assert "\\x1b[31m" in run("keepalived", "-", given=text).stdout
    assert "\x1b" not in run("keepalived", "-", given="\x1b[31m\n").stderr
