# SPDX-License-Identifier: Apache-2.0
"""Runs the README's commands on bare machines, each a fresh root of Debian's smallest system.

    python -m tools.bare                                  all distributions, make demo and make test
    python -m tools.bare --on trixie --command demo       one of them, one command
    python -m tools.bare --write                          and write the table in docs/install.md

What is committed is tried, in a clone. Exit code 0: all blocking distributions are well.
"""

from __future__ import annotations

import argparse
import fcntl
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bare import document, image
from tools.bare.machine import Machine, Ran, machine
from tools.debian.archive import cache_directory
from tools.debian.distributions import SUPPORTED, Distribution, named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

README = Path("README.md")
LOGS = Path("build/bare")
COMMANDS = ("demo", "test")
TIMEOUT_MINUTES = 60
_SHOWN = 40
"""Lines of a log that are shown where something went wrong: its end."""
# As pytest closes.
_COUNTED = re.compile(r"(\d+ (?:failed|passed).*?) in [\d.]+s")


@dataclass
class Result:
    """What came of one distribution: of each command, minutes and what it said."""

    distribution: Distribution
    commands: dict[str, tuple[Ran, str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every command ended well."""
        return all(ran.code == 0 for ran, _ in self.commands.values())


def readme_commands() -> dict[str, str]:
    """Return the README's commands by what they make."""
    lines = re.findall(r"^(make (\w+)).*$", README.read_text(), re.MULTILINE)
    return {name: line for line, name in lines}


def bundle(commit: str, target: Path) -> None:
    """Write a commit and its history to a file that can be cloned."""
    reference = "refs/bare/tried"  # a bundle wants a name
    subprocess.run(["git", "update-ref", reference, commit], check=True)
    try:
        subprocess.run(["git", "bundle", "create", "-q", str(target), reference], check=True)
    finally:
        subprocess.run(["git", "update-ref", "-d", reference], check=True)


def clone(made: Machine, commit: str, log: Path) -> None:
    """Put the repository on a bare machine, as a user does."""
    bundle(commit, made.root / "root/towpath.bundle")
    get = "git init -q towpath && cd towpath && git fetch -q ../towpath.bundle refs/bare/tried"
    ran = made.run(f"{get} && git checkout -q FETCH_HEAD", log, timeout=60)
    if ran.code != 0:
        raise RuntimeError(f"the clone failed; see {log}")


def try_out(
    distribution: Distribution, commands: Sequence[str], options: argparse.Namespace, place: Path
) -> Result:
    """Run commands on a bare machine, one after another as a user would."""
    result, written = Result(distribution), readme_commands()
    archive = image.obtain(distribution, fresh=options.fresh)
    with machine(archive, place) as made:
        log = options.logs / f"{distribution.name}-clone.log"
        log.unlink(missing_ok=True)
        clone(made, options.commit, log)
        for name in commands:
            log = options.logs / f"{distribution.name}-{name}.log"
            log.unlink(missing_ok=True)
            print(f"{distribution.title}: {written[name]} (see {log})", flush=True)
            line = f"cd towpath && {written[name]}"
            ran = made.run(line, log, timeout=options.timeout * 60)
            said = log.read_text(errors="replace")
            result.commands[name] = ran, said
            show(distribution, written[name], ran, said)
    return result


def show(distribution: Distribution, line: str, ran: Ran, said: str) -> None:
    """Print what came of one command."""
    print(f"{distribution.title}: {line}: {document.outcome(ran, counted(said))}", flush=True)
    if ran.code != 0:
        print("  " + "\n  ".join(said.splitlines()[-_SHOWN:]), flush=True)


def counted(said: str) -> str:
    """Return how many tests passed and failed, as pytest says last; empty: no tests were run."""
    found = _COUNTED.findall(said)
    return found[-1] if found else ""


@contextmanager
def workplace() -> Iterator[Path]:
    """Return a directory for roots, emptied. Only one run at a time has it."""
    cache = cache_directory("bare")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another run has {cache}; wait for its end")
        roots = cache / "roots"
        shutil.rmtree(roots, ignore_errors=True)
        yield roots


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [each.name for each in SUPPORTED]
    parser.add_argument("--on", action="append", choices=names, help="only this distribution")
    parser.add_argument(
        "--command", action="append", choices=[*readme_commands()], help="only this command"
    )
    parser.add_argument("--commit", default="HEAD", help="what is tried (HEAD)")
    parser.add_argument("--fresh", action="store_true", help="make the roots again")
    parser.add_argument("--logs", type=Path, default=LOGS, metavar="DIR", help=f"({LOGS})")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_MINUTES, metavar="MINUTES")
    parser.add_argument("--write", action="store_true", help="write the table in docs/install.md")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    return options


def main() -> int:
    """Try all out."""
    options = arguments()
    # A shell has what it runs in the background ignore SIGINT: commands in roots would, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    changed = subprocess.run(
        ["git", "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    if changed and options.commit == "HEAD":
        print("bare: what is not committed is not tried:", *changed.splitlines(), sep="\n  ")
    commands = options.command or COMMANDS
    with workplace() as roots:
        results = [
            try_out(each, commands, options, roots / each.name)
            for each in (list(map(named, options.on or ())) or SUPPORTED)
        ]
    rows = {
        each.distribution.title: {
            name: document.outcome(ran, counted(said))
            for name, (ran, said) in each.commands.items()
        }
        for each in results
    }
    print(document.table(rows))
    if options.write:
        document.write(rows)
    failed = [each.distribution for each in results if not each.ok]
    blocking = [each for each in failed if each.blocking]
    for each in failed:
        print(f"{each.title} failed" + ("" if each.blocking else " (not blocking)"))
    print(f"bare: {len(results) - len(failed)} passed, {len(blocking)} failed")
    return int(bool(blocking))


if __name__ == "__main__":
    sys.exit(main())
