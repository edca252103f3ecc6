# SPDX-License-Identifier: Apache-2.0
"""Which processes of a node are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from towpath.cleanup.found import kube_proxies, sees_node
from towpath.kernel import processes

HERE, ELSEWHERE = "net:[4026531840]", "net:[4026532000]"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc without processes but this one, in a pod."""
    monkeypatch.setattr(processes, "PROC", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    process(tmp_path, "self", "towpath", HERE)
    return tmp_path


def process(proc: Path, number: str, name: str, network: str) -> None:
    """Have one more."""
    (proc / number / "ns").mkdir(parents=True)
    (proc / number / "comm").write_text(f"{name}\n")
    (proc / number / "ns/net").symlink_to(network)


def test_a_kube_proxy_of_this_network(proc: Path) -> None:
    """Not one of another node on this machine, nor anybody else."""
    process(proc, "30", "kube-proxy", HERE)
    process(proc, "7", "kube-proxy", HERE)
    process(proc, "8", "kube-proxy", ELSEWHERE)
    process(proc, "9", "kubelet", HERE)
    assert kube_proxies() == [7, 30]


def test_one_that_may_not_be_asked_may_be_here(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a privileged process a pod that isn't is told nothing, and so takes nothing out."""
    process(proc, "7", "kube-proxy", ELSEWHERE)
    process(proc, "8", "kube-proxy", ELSEWHERE)
    readlink = Path.readlink

    def refused(path: Path) -> Path:
        if path.parts[-3] == "7":
            raise PermissionError
        return readlink(path)

    monkeypatch.setattr(Path, "readlink", refused)
    assert kube_proxies() == [7]


def test_a_pod_sees_its_own_processes(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it has the node's; whoever is in no pod does."""
    assert not sees_node()
    process(proc, "9", "kubelet", HERE)
    assert sees_node()
    (proc / "9/comm").write_text("pause\n")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert sees_node()
