# SPDX-License-Identifier: Apache-2.0
"""The section of sockets: what it takes, and what it refuses with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from towpath.model import ConfigError, parse_config
from towpath.model.socket import Packets, Section

SERVICE = {"name": "web", "vip": "192.0.2.10", "port": 80, "backends": ["10.0.0.1"]}


def parsed(section: Any, **others: Any) -> Section:
    """What a file with that section means."""
    text = yaml.safe_dump({"socket": section} | others)
    found = parse_config(text, "towpath.yaml").sections["socket"]
    assert isinstance(found, Section)
    return found


def test_what_is_left_out_has_its_default() -> None:
    """All processes, ECONNREFUSED, and sockets of UDP are ended."""
    assert parsed(None) == parsed({}) == Section(None, (), "ECONNREFUSED", "udp")


def test_all_of_it() -> None:
    """One excluded cgroup by itself is a list too."""
    section = {"cgroup": "/a", "exclude": "/a/b", "no_backend": "EPERM", "stale": "all"}
    packets = {"devices": "tap*", "flows": 2048}
    wanted = Section(Path("/a"), (Path("/a/b"),), "EPERM", "all", Packets(("tap*",), 2048))
    assert parsed(section | {"packets": packets}) == wanted


def test_services_need_no_device_then() -> None:
    """They are balanced at sockets."""
    parsed({}, services=[SERVICE])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cgroup": "app"}, "socket.cgroup: 'app' is not an absolute path"),
        ({"exclude": ["/a", "b"]}, "socket.exclude: 'b' is not an absolute path"),
        ({"no_backend": "drop"}, "socket.no_backend: 'drop' "),
        ({"stale": "tcp"}, "socket.stale: 'tcp' "),
        ({"cgroups": "/a"}, "socket.cgroups: unknown key"),
        ({"packets": {}}, "socket.packets.devices: is missing"),
        ({"packets": {"devices": []}}, "socket.packets.devices: no device is named"),
        ({"packets": {"devices": "a", "flows": 9}}, "socket.packets.flows: 9 "),
    ],
)
def test_what_is_wrong_is_told(section: Any, message: str) -> None:
    """Where, and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        parsed(section)
    assert message in str(caught.value)
