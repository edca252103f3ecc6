# SPDX-License-Identifier: Apache-2.0
"""Beside systemd, which attaches programs of its own to the cgroups of its units.

It is process 1 of a node here, and has a unit whose packets it filters, whose devices it limits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.prog.cgroup.harness_nodes import counted_at
from tests.prog.kernel.harness_cgroups import SECONDS

from towpath.kernel.bpf.attached import AttachedProgram, Inventory
from towpath.kernel.cgroup import cgroup_id
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.host

DENIED, ALLOWED = "192.0.2.1", "198.51.100.1"
# Everything that it might write to is in memory, and its own.
_ENTER = """
mount --make-rprivate /
mount --bind "$RESULTS" /mnt
umount -R -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t proc proc /proc
ip link set lo up
ip route add 192.0.2.0/24 dev lo
ip route add 198.51.100.0/24 dev lo
for each in /run /var /etc; do mount -t tmpfs none $each; done
mkdir -p /run/units /var/log
: > /etc/machine-id
cp /mnt/own.service /mnt/own.target /run/units
exec env -i container=towpath SYSTEMD_UNIT_PATH=/run/units PATH="$PATH" "$SYSTEMD" --system \
    --unit=own.target --log-target=console --log-level=warning --show-status=no
"""
_TARGET = "[Unit]\nDefaultDependencies=no\nWants=own.service\n"
_SERVICE = """
[Unit]
DefaultDependencies=no
[Service]
ExecStart={python} -c "from tests.prog.cgroup.test_systemd import serve; serve()"
Environment=PYTHONPATH={code}
IPAddressDeny=192.0.2.0/24
DevicePolicy=closed
"""


def serve() -> None:
    """What the unit does: attach a program to the root that is found, and say what is seen."""
    import socket  # noqa: PLC0415 -- a process of its own
    import time  # noqa: PLC0415

    from tests.prog.cgroup.harness_nodes import CONNECT4, calls, counting  # noqa: PLC0415

    from towpath.datapath.cgroup.root import CgroupRoot  # noqa: PLC0415
    from towpath.kernel.bpf.cgroups import attach_cgroup  # noqa: PLC0415

    def sent(address: str) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((address, 9))
            try:
                sender.send(b"x")
            except OSError as error:
                return type(error).__name__
        return "sent"

    with CgroupRoot() as root, counting(root.within) as counted:
        found = {"name": root.name, "id": root.id, "proven": root.prove().proven}
        before = sent(DENIED), sent(ALLOWED)
        with attach_cgroup(counted.programs["connect4"], root.path, CONNECT4):
            during = sent(DENIED), sent(ALLOWED)
            found |= {"before": before, "during": during, "calls": calls(counted)}
            Path("/mnt/new").write_text(json.dumps(found))
            Path("/mnt/new").rename("/mnt/found")
            while not Path("/mnt/enough").exists():
                time.sleep(0.01)
        Path("/mnt/after").write_text(json.dumps([sent(DENIED), sent(ALLOWED)]))
        while True:
            time.sleep(1)


@contextmanager
def systemd(path: Path, results: Path) -> Iterator[None]:
    """Run it as process 1 of a node for the block."""
    there = ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")
    binary = next(each for each in there if Path(each).exists())
    (results / "own.target").write_text(_TARGET)
    service = _SERVICE.format(python=sys.executable, code=Path.cwd())
    (results / "own.service").write_text(service)
    kinds = ["--cgroup", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
    start = f'echo $$ > "{path}/cgroup.procs"; exec unshare "$@"'
    command = ["sh", "-c", start, "sh", *kinds, "sh", "-c", _ENTER]
    environment = os.environ | {"RESULTS": str(results), "SYSTEMD": binary}
    with (results / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def read(path: Path, process: Path) -> Any:
    """What the unit has written, once it has."""
    wait_until(path.exists, seconds=SECONDS, what=f"{path}: {(process / 'log').read_text()}")
    return json.loads(path.read_text())


def of_systemd(programs: list[AttachedProgram]) -> list[tuple[str, str, int]]:
    """Those that are its own."""
    return [(each.hook, each.place, each.program_id) for each in programs if "sd_" in each.name]


def test_its_programs_live_on_beside_others(cgroup: Path, tmp_path: Path) -> None:
    """They are listed with them, and do what they did before, meanwhile and afterwards."""
    unit = cgroup / "system.slice" / "own.service"
    with systemd(cgroup, tmp_path):
        found = read(tmp_path / "found", tmp_path)
        assert (found["name"], found["id"]) == ("/sys/fs/cgroup", cgroup_id(cgroup))
        assert found["proven"]
        assert found["before"] == found["during"] == ["PermissionError", "sent"]
        assert found["calls"] == 2
        programs = Inventory().cgroup_hooks(unit)
        theirs = of_systemd(programs)
        assert {hook for hook, _, _ in theirs} >= {"ingress", "egress", "device"}
        assert {place for _, place, _ in theirs} == {str(unit)}
        assert counted_at(programs) == [(str(cgroup), "multi")]
        (tmp_path / "enough").touch()
        assert read(tmp_path / "after", tmp_path) == ["PermissionError", "sent"]
        assert of_systemd(Inventory().cgroup_hooks(unit)) == theirs
