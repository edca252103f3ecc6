# SPDX-License-Identifier: Apache-2.0
"""Tests with a real Kubernetes on this machine.

    python -m tools.kubernetes              build what is missing, run all of tests/kubernetes
    python -m tools.kubernetes --ci         what CI runs: bounded, and nothing is built
    python -m tools.kubernetes --write      and write docs/kubernetes-conformance.md
    python -m tools.kubernetes --build      only build
    python -m tools.kubernetes -- PATH...   arguments for pytest

Exit code 0: all is well, or (with --ci) it can't run here, which is told.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from tools.kubernetes import binaries, image, kept
from tools.kubernetes.errors import KubernetesError

TESTS = "tests/kubernetes"
CI_SECONDS = 60
"""No test begins later than that in CI, whose time is all but used up."""


def main() -> int:
    """Do what the command line says."""
    options = _options()
    if options.ci and (gone := [*binaries.missing(), *kept.missing()]):
        had = "" if binaries.go() else ", and there is no Go to build it"
        print(f"make kubernetes: NOT RUN: {', '.join(gone)}: not in {binaries.cache()}{had}.")
        print("  make kubernetes (without CI=1) builds it once, in some 10 minutes")
        return 0
    try:
        build()
        if not (options.ci or options.build):
            # Tests have no way to where packages are.
            image.kept_image()
            kept.make_more()
    except KubernetesError as error:
        print(f"make kubernetes: {error}", file=sys.stderr)
        return 1
    return 0 if options.build else run_tests(options)


def build() -> None:
    """Build what is missing."""
    for module in (*binaries.SUPPORTED, binaries.CHARTS):
        if not module.is_kept:
            version = binaries.VERSIONS[module.name]
            print(f"building {module.name} {version}: {', '.join(module.programs)}", flush=True)
            began = time.monotonic()
            binaries.build(module)
            print(f"built {module.name} in {time.monotonic() - began:.0f} s", flush=True)
    kept.make()


def run_tests(options: argparse.Namespace) -> int:
    """Run pytest; return its exit code."""
    # Which cluster comes first is settled by the files' names; two at once are slower than one
    # after the other on two CPUs.
    words = ["-q", "--no-loadscope-reorder"]
    paths = options.pytest or [TESTS]
    environment = os.environ | {"TOWPATH_KUBERNETES": "1"}
    if options.ci:
        words += ["-m", "not thorough"]
        environment["TOWPATH_KUBERNETES_SECONDS"] = str(CI_SECONDS)
    if options.write:
        environment["TOWPATH_KUBERNETES_WRITE"] = "1"
    command = [sys.executable, "-m", "tests.again", *words, *paths]
    return subprocess.run(command, env=environment, check=False).returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes")
    parser.add_argument("--ci", action="store_true", help="bounded; nothing is built")
    parser.add_argument("--build", action="store_true", help="run no tests")
    parser.add_argument("--write", action="store_true", help="and write the table of conformance")
    parser.add_argument("pytest", nargs="*", help=f"for pytest, instead of {TESTS}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
