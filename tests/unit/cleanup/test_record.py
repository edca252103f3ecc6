# SPDX-License-Identifier: Apache-2.0
"""What is to be put back outlives who has written it, and no boot; and what nobody would serve."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from towpath.cleanup import kube_proxy, record
from towpath.cleanup.errors import CleanupError
from towpath.cleanup.found import Found
from towpath.core.kube_proxy import nft
from towpath.core.kube_proxy.iptables import Jump
from towpath.core.kube_proxy.served import Served

if TYPE_CHECKING:
    from pathlib import Path

WEB = Served(ip_address("10.96.0.9"), 80, "tcp", "default/web")
PORT = Served(ip_address("192.0.2.1"), 30080, "tcp", "default/web", node_port=True)
OTHER = Served(ip_address("10.244.1.1"), 30080, "tcp", "default/web", node_port=True)


def test_a_record_is_what_it_was(tmp_path: Path) -> None:
    """With all that restoring needs."""
    jumps = {"iptables-nft": [Jump("nat", "PREROUTING", 2, "-j KUBE-SERVICES")]}
    made = record.Record("unhooked", 12.5, ["ip"], jumps, [WEB, PORT])
    made.write(tmp_path)
    assert record.read(tmp_path) == made
    record.remove(tmp_path)
    assert record.read(tmp_path) is None


def test_a_record_of_another_boot_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules of netfilter have gone with it."""
    record.Record("unhooked", 12.5).write(tmp_path)
    boot = tmp_path / "boot"
    boot.write_text("another\n")
    monkeypatch.setattr(record, "_BOOT", boot)
    assert record.read(tmp_path) is None


def test_who_would_have_nothing_is_told() -> None:
    """Clients outside, where it is served to this node alone; node ports elsewhere don't count."""
    found = Found([nft.Table("ip", dormant=False, served=(WEB, PORT, OTHER))])
    at = [(each.address, each.port, each.protocol) for each in (WEB, PORT)]
    assert kube_proxy.unserved(found, dict.fromkeys(at, True)) == []
    assert kube_proxy.unserved(found, {at[0]: True, at[1]: False}) == [
        (PORT, "clients outside of this node")
    ]
    assert [whom for _, whom in kube_proxy.unserved(found, {})] == ["everybody"] * 3


def test_what_was_never_begun_cannot_be_ended(tmp_path: Path) -> None:
    """Nor is anything begun while kube-proxy runs."""
    for end in (kube_proxy.confirm, kube_proxy.restore, kube_proxy.release):
        with pytest.raises(CleanupError, match="nothing was unhooked"):
            end(tmp_path)
    with pytest.raises(CleanupError, match="kube-proxy runs"):
        kube_proxy.unhook(tmp_path, Found(processes=[7]), 60)
    assert not list(tmp_path.iterdir())
