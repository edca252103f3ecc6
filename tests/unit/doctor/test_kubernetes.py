# SPDX-License-Identifier: Apache-2.0
"""What processes say of pods' cgroups, and containerd of itself."""

from __future__ import annotations

import pytest

from towpath.doctor.sources.kubernetes import judge_containerd, kubepods

UID = "pod5f0c2c5e-7a0e-4a6b-9b52-3ad1f0f0c1d2"
MIXED = f"3:memory:/node/kubepods/burstable/{UID}/a\n0::/node/kubepods/burstable/{UID}/a\n"
SYSTEMD = (
    "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx.slice/cri-a.scope\n"
)
KIND = f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{UID}.slice/a.scope\n"
STAYS = f"3:memory:/kubepods/{UID}/a\n1:name=systemd:/kubepods/{UID}/a\n0::/node\n"
OTHER = "3:memory:/system.slice\n0::/system.slice/sshd.service\n"


@pytest.mark.parametrize(
    ("processes", "v2", "apart"),
    [
        ([MIXED, OTHER], {"/node/kubepods"}, set()),
        ([SYSTEMD], {"/kubepods.slice"}, set()),
        ([KIND, MIXED], {"/kubelet.slice/kubelet-kubepods.slice", "/node/kubepods"}, set()),
        ([STAYS, OTHER], set(), {"/node"}),
        (["0::/../../podx/a\n", OTHER, ""], set(), set()),
    ],
)
def test_the_root_of_pods_is_told_by_a_pods_process(
    processes: list[str], v2: set[str], apart: set[str]
) -> None:
    """Whatever the driver, in as many nodes as there are; or that it is in version 1 alone."""
    found = kubepods(processes)
    assert (set(found.v2), set(found.apart)) == (v2, apart)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", False),
        ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", False),
        ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4e4", True),
        ("", None),
    ],
)
def test_old_runtimes_are_told(said: str, wanted: object) -> None:
    """By the major version alone."""
    assert judge_containerd(said).works is wanted
