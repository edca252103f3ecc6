# SPDX-License-Identifier: Apache-2.0
"""What `towpath import` prints is what an agent runs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import yaml
from tests.lab.harness_agent import running

from towpath.api.client import Client

if TYPE_CHECKING:
    from pathlib import Path

CONF = """\
virtual_server 203.0.113.10 80 {
    delay_loop 60
    lb_algo wrr
    lb_kind TUN
    protocol TCP
    real_server 192.0.2.11 80 {
        weight 3
        inhibit_on_failure
        MISC_CHECK {
            misc_path "/bin/true 192.0.2.11"
        }
    }
    real_server 192.0.2.12 80 {
        weight 1
        inhibit_on_failure
        MISC_CHECK {
            misc_path "/bin/true 192.0.2.12"
        }
    }
}
virtual_server_group DNS {
    203.0.113.16-31 53
}
virtual_server group DNS {
    lb_kind DR
    protocol UDP
    ops
    real_server 192.0.2.11 53 {
    }
}
"""


def test_an_agent_takes_what_is_printed(tmp_path: Path) -> None:
    """In its file, with checks that run commands; weights are as they were."""
    conf = tmp_path / "keepalived.conf"
    conf.write_text(CONF)
    command = [sys.executable, "-m", "towpath", "import", "keepalived", str(conf)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    services = yaml.safe_load(printed)["services"]
    for each in services:
        each["table_size"] = 251
    directory = tmp_path / "agent"
    directory.mkdir()
    with running(directory, services=services) as agent, Client(agent.socket) as client:
        found = {each.name: each for each in client.services()}
        assert set(found) == {"tcp-203.0.113.10-80", "DNS-203.0.113.16_28-53"}
        web, dns = found["tcp-203.0.113.10-80"], found["DNS-203.0.113.16_28-53"]
        assert [each.weight for each in web.backends] == [3, 1]
        assert (dns.forwarding, dns.flow_table, str(dns.vip)) == ("l2", False, "203.0.113.16/28")
        chosen = [
            str(client.trace(f"198.51.100.77:{port} -> 203.0.113.10:80 tcp").backend)
            for port in range(2000, 2100)
        ]
        assert 60 < chosen.count("192.0.2.11") < 90
