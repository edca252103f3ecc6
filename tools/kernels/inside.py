# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest: everything for one kernel, in one boot.

Usage: inside.py SUITE... [tests/PATH...] [--OPTION...]      writes /results/report.json

Paths are what is run of the suites; without any, all of it is. Options are pytest's; by --within,
seconds from the beginning of this, what has no time left is skipped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from tests.again import run
from tests.guests import NO_TIME
from tools.compilers.supported import NEWEST

if TYPE_CHECKING:
    from towpath.kernel.bpf.object import BpfObject

RESULTS = Path("/results")
# Asked for by name: nothing in a guest's userspace loads them on demand.
MODULES = (
    "veth tun dummy bonding 8021q ipip ip6_tunnel sch_netem sch_fq ip_vs ip_vs_rr virtio_net"
    " vmxnet3 vrf"
)

TEST_SECONDS = 600
WITHIN = "--within="

# A suite's tests. One run of pytest for all suites: starting it takes half a minute.
TESTS = {
    "prog": "tests/prog",
    "lab": "tests/guest",
    "degrade": "tests/guest/test_degrade.py",
    "compilers": "tests/compilers",
    "tags": "tests/guest/test_cgroup_tags.py",
}
SHIPPED = Path("src/towpath/objects")


def set_constants(balancer: BpfObject) -> None:
    """Give the load balancer what it is loaded with in earnest: the verifier goes by it."""
    from towpath.datapath.maps.layout import Layout  # noqa: PLC0415 - as below
    from towpath.model.settings import Limits  # noqa: PLC0415

    ways = {"flow_ways": 8, "client_ways": 8, "fragment_ways": 8}
    sizes = Layout.of(Limits(), os.cpu_count() or 1, maglev_line=16, **ways)
    nat = {"nat_port_first": 10000, "nat_ports": 22768, "nat_sources4": 2, "nat_sources6": 2}
    tunnels = {"unwraps": 1, "takes_gre": 1, "takes_udp": 1}
    seeds = {"trace_cookie": 1, "flow_seed": 1, "health_mark": 1}
    for name, value in (sizes.constants() | seeds | nat | tunnels).items():
        balancer.rodata[name] = value


def set_masquerade(programs: BpfObject) -> None:
    """The same for masquerade, with all that it can do."""
    from towpath.datapath.masquerade.program import constants  # noqa: PLC0415 - as below
    from towpath.model.masquerade import Section  # noqa: PLC0415

    section = Section(rules=(), mapping="endpoint-independent")
    for name, value in constants(section, ways=8, shift=8).items():
        programs.rodata[name] = value


def set_bandwidth(programs: BpfObject) -> None:
    """The same for bandwidth, without programs that the kernel is never given."""
    from towpath.datapath.bandwidth.program import constants  # noqa: PLC0415 - as below
    from towpath.kernel.bpf import probe  # noqa: PLC0415

    for name, value in constants(direct=True, by_address=True).items():
        programs.rodata[name] = value
    for name in programs.program_names:
        if name.endswith("_atomic") and not probe.atomics():
            programs.autoload(name, on=False)


def set_packets(programs: BpfObject) -> None:
    """The same for services in packets: without a rate no flow begins, and there is less to see."""
    own = {"packet_mask": 8191, "packet_rate": 800, "packet_seed": 1, "packet_epoch": 1}
    lb = {"vip_mask": 8191, "client_mask": 8191, "flow_seed": 1, "hash_seed": 1}
    times = {"nat_tcp_open": 7440, "nat_tcp_new": 60, "nat_tcp_closing": 30}
    for name, value in (own | lb | times | {"nat_udp_open": 300, "nat_udp_new": 30}).items():
        programs.rodata[name] = value


def load_objects(directory: Path) -> list[dict[str, Any]]:
    """Load every object of a directory, and say what the verifier said."""
    from towpath.kernel.bpf import dispatched  # noqa: PLC0415
    from towpath.kernel.bpf.fragments import taking_fragments  # noqa: PLC0415
    from towpath.kernel.bpf.object import BpfObject  # noqa: PLC0415
    from towpath.kernel.errors import KernelError  # noqa: PLC0415 - 1 s in a guest

    found = []
    for path in sorted(directory.glob("*.bpf.o")):
        began = time.monotonic()
        try:
            with taking_fragments(BpfObject(path)) as loaded:
                if path.name in {"lb.bpf.o", "recorder.bpf.o"}:
                    set_constants(loaded)
                if path.name == "masquerade.bpf.o":
                    set_masquerade(loaded)
                if path.name == "bandwidth.bpf.o":
                    set_bandwidth(loaded)
                if path.name == "socket_packets.bpf.o":
                    set_packets(loaded)
                if path.name == "dispatcher_component.bpf.o":
                    dispatched.load(loaded, statistics=True)
                else:
                    loaded.load(statistics=True)
                found += [
                    {
                        "program": program.name,
                        "object": path.name,
                        "verified": program.verified_instructions,
                        "jited": program.jited_bytes,
                        "seconds": time.monotonic() - began,
                    }
                    for program in loaded.programs.values()
                ]
        except KernelError as error:
            found.append({"object": path.name, "refused": str(error)})
    return found


def diagnose() -> list[dict[str, Any]]:
    """Return what `towpath doctor` finds in this kernel; programs and files are the host's."""
    from towpath.doctor import doctor  # noqa: PLC0415 - as above
    from towpath.doctor.rules import OUTSIDE  # noqa: PLC0415 - as above

    hosts = {rule.name for rule in OUTSIDE}
    return [asdict(each) for each in doctor() if each.name not in hosts]


def run_tests(
    suites: list[str], paths: list[str], options: list[str]
) -> tuple[int, list[str], dict[str, Any]]:
    """Run suites of tests, or of them what is in ``paths``; its output goes to the results.

    Returns pytest's exit code, what passed only when run again, and for each suite how many tests
    passed, failed and were skipped, and their seconds.
    """
    wanted = [suite for suite in suites if suite in TESTS]
    if not wanted:
        return 0, [], {}
    # Each test's name is told before it runs: it is what a guest that hangs has come to.
    own = ["-v", f"--junitxml={RESULTS}/tests.xml"]
    own += [f"--timeout={TEST_SECONDS}", "-o", f"faulthandler_timeout={TEST_SECONDS + 60}"]
    alone = [f"--junitxml={RESULTS}/again.xml"]
    with (RESULTS / "tests.txt").open("w") as output:
        chosen = paths or [TESTS[suite] for suite in wanted]
        code, again = run([*own, *chosen, *options], alone, output)
    return code, again, tally([RESULTS / "tests.xml", RESULTS / "again.xml"], wanted)


def cases_of(path: Path) -> list[ET.Element]:
    """Return what pytest has written of each test."""
    # Written by pytest a moment ago.
    return list(ET.parse(path).iter("testcase")) if path.exists() else []  # noqa: S314


def costs(path: Path) -> dict[str, int]:
    """Return the seconds that each module took all of whose tests were tried."""
    took: dict[str, float] = {}
    cut_short = untried(path)
    for case in cases_of(path):
        module = _module(case)
        took[module] = took.get(module, 0) + float(case.get("time", 0))
    return {module: round(took[module]) for module in took if module not in cut_short}


def untried(path: Path) -> list[str]:
    """Return the modules of which tests were left out for want of time."""
    return sorted({_module(case) for case in cases_of(path) if _outcome(case) == "untried"})


def _module(case: ET.Element) -> str:
    return f"{case.get('classname')}".replace(".", "/") + ".py"


def tally(paths: list[Path], suites: list[str]) -> dict[str, Any]:
    """Count what pytest has written, by suite; what was run again counts as it then was."""
    again = {_name(case) for path in paths[1:] for case in cases_of(path)}
    cases = [case for case in cases_of(paths[0]) if _name(case) not in again]
    cases += [case for path in paths[1:] for case in cases_of(path)]
    found = {}
    for suite in suites:
        module = TESTS[suite].removesuffix(".py").replace("/", ".")
        own = [case for case in cases if f"{case.get('classname')}.".startswith(f"{module}.")]
        counts = Counter(_outcome(case) for case in own)
        seconds = sum(float(case.get("time", 0)) for case in own)
        found[suite] = {"seconds": seconds, "counts": dict(sorted(counts.items()))}
    return found


def _name(case: ET.Element) -> tuple[str | None, str | None]:
    return case.get("classname"), case.get("name")


def _outcome(case: ET.Element) -> str:
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    said = next((child for child in case if child.tag in kinds), None)
    if said is None:
        return "passed"
    return "untried" if said.get("message") == NO_TIME else kinds[said.tag]


def use_once() -> None:
    """Connect once by each family, and wait a moment.

    Where a kernel does something the first time only, it then patches that out, while the other CPU
    may be there: guest.py says what emulated ones make of it.
    """
    subprocess.run(["/sbin/ip", "link", "set", "lo", "up"], check=False)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with (
            suppress(OSError),
            socket.create_server((address, 0), family=family) as server,
            socket.create_connection(server.getsockname()[:2]),
            socket.socket(family, socket.SOCK_DGRAM) as datagrams,
        ):
            datagrams.connect(server.getsockname())
            datagrams.send(b"")
    time.sleep(1)


def main(arguments: list[str]) -> int:
    """Run the suites; the exit code is 0 if all is well.

    The arguments are those of the module's usage.
    """
    began = time.monotonic()
    limits = [word for word in arguments if word.startswith(WITHIN)]
    paths = [word for word in arguments if word.startswith("tests/")]
    options = [word for word in arguments if word.startswith("--") and word not in limits]
    suites = [word for word in arguments if not word.startswith(("tests/", "--"))]
    for module in MODULES.split():
        subprocess.run(["/sbin/modprobe", "-q", module], check=False)
    use_once()
    report: dict[str, Any] = {"release": os.uname().release}
    if "load" in suites:
        report["programs"] = load_objects(SHIPPED)
        report["doctor"] = diagnose()
    if "compilers" in suites:
        report["newest"] = load_objects(NEWEST.made / "objects")
    for word in limits:
        left = float(word.removeprefix(WITHIN)) - (time.monotonic() - began)
        options.append(f"{WITHIN}{left:.0f}")
    code, report["again"], report["suites"] = run_tests(suites, paths, options)
    report["costs"] = costs(RESULTS / "tests.xml")
    report["untried"] = untried(RESULTS / "tests.xml")
    (RESULTS / "report.json").write_text(json.dumps(report, indent=1))
    loaded = [*report.get("programs", ()), *report.get("newest", ())]
    refused = any("refused" in each for each in loaded)
    return int(refused or code != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
