# SPDX-License-Identifier: Apache-2.0
"""What runs in a guest: everything for one kernel, in one boot.

Usage: inside.py SUITE...      writes /results/report.json
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from towpath.kernel.object import BpfObject

RESULTS = Path("/results")
# Asked for by name: nothing in a guest's userspace loads them on demand.
MODULES = "veth tun dummy bonding 8021q ipip ip6_tunnel sch_netem sch_fq ip_vs virtio_net"
_COUNTS = re.compile(r"(\d+) (passed|failed|error|errors|skipped|deselected)")

TESTS = {
    "prog": ["tests/prog"],
    "lab": ["tests/lab", "tests/guest", "-m", "guest"],
}


def set_constants(balancer: BpfObject) -> None:
    """Give the load balancer what it is loaded with in earnest: the verifier goes by it."""
    from towpath.datapath.layout import Layout  # noqa: PLC0415 - as below
    from towpath.model.settings import Limits  # noqa: PLC0415

    sizes = Layout.of(Limits(), os.cpu_count() or 1, flow_ways=8, maglev_line=16)
    for name, value in (sizes.constants() | {"trace_cookie": 1, "flow_seed": 1}).items():
        balancer.rodata[name] = value


def load_objects() -> list[dict[str, Any]]:
    """Load every object that is shipped, and say what the verifier said."""
    from towpath.kernel.errors import KernelError  # noqa: PLC0415 - 1 s in a guest
    from towpath.kernel.object import BpfObject  # noqa: PLC0415

    directory = Path("src/towpath/objects")
    found = []
    for path in sorted(directory.glob("*.bpf.o")):
        began = time.monotonic()
        try:
            with BpfObject(path) as loaded:
                if path.name == "xdp.bpf.o":
                    set_constants(loaded)
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
    """Return what `towpath doctor` finds here."""
    from towpath.doctor import doctor  # noqa: PLC0415 - as above

    return [asdict(each) for each in doctor()]


def run_tests(suite: str, without: list[str]) -> dict[str, Any]:
    """Run one suite of tests; its output goes to the results."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *TESTS[suite],
        *without,
    ]
    with (RESULTS / f"{suite}.txt").open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    text = (RESULTS / f"{suite}.txt").read_text(errors="replace")
    last = next((line for line in reversed(text.splitlines()) if " in " in line), "")
    counts = {word: int(number) for number, word in _COUNTS.findall(last)}
    return {"code": code.returncode, "seconds": time.monotonic() - began, "counts": counts}


def main(arguments: list[str]) -> int:
    """Run the suites; the exit code is 0 if all is well.

    Arguments that begin with -- are pytest's.
    """
    suites = [word for word in arguments if not word.startswith("--")]
    without = [word for word in arguments if word.startswith("--")]
    for module in MODULES.split():
        subprocess.run(["/sbin/modprobe", "-q", module], check=False)
    report: dict[str, Any] = {"release": os.uname().release}
    if "load" in suites:
        report["programs"] = load_objects()
        report["doctor"] = diagnose()
    report["suites"] = {suite: run_tests(suite, without) for suite in suites if suite in TESTS}
    (RESULTS / "report.json").write_text(json.dumps(report, indent=1))
    refused = any("refused" in each for each in report.get("programs", ()))
    return int(refused or any(each["code"] for each in report["suites"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
