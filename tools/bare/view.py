# SPDX-License-Identifier: Apache-2.0
"""Runs a command as if this machine had nothing but what is declared in outside.txt.

    python -m tools.bare.view --for test -- make test
    python -m tools.bare.view --for test --without openssl -- .venv/bin/python -m pytest tests/unit

Only this command's namespace is changed. There it finds

- of programs those that are declared, by name, and those of Debian's essential packages,
- of /usr and /etc besides what the declared packages bring, and those that they depend on.

A program that comes in only because a declared package depends on its package is hidden as well:
what is used is declared, not left to chance.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bare import host
from tools.bare.outside import needs

from towpath.doctor.outside import is_program
from towpath.kernel import _libc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_HIDDEN = ("/usr", "/etc")
_PROGRAMS = ("/usr/bin", "/usr/sbin", "/bin", "/sbin")
# Written when packages are set up, and so in no package.
_WRITTEN = (
    "/etc/alternatives",
    "/etc/group",
    "/etc/gshadow",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/machine-id",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/shadow",
)
_WRITTEN_BY = {"ca-certificates": "/etc/ssl/certs"}
_FIELDS = "${Package}\t${Essential}\t${Priority}\t${Pre-Depends}, ${Depends}\t${Provides}\n"


@dataclass(slots=True)
class Packages:
    """What is installed here: of each package those that it depends on, each one or another."""

    depends: dict[str, list[list[str]]] = field(default_factory=dict)
    providers: dict[str, list[str]] = field(default_factory=dict)
    essential: list[str] = field(default_factory=list)

    @classmethod
    def installed(cls) -> Packages:
        """Ask dpkg."""
        made = cls()
        for line in _output("dpkg-query", "-W", f"-f={_FIELDS}").splitlines():
            name, essential, priority, depends, provides = line.split("\t")
            made.depends[name] = [_names(each.split("|")) for each in depends.split(",")]
            for each in _names(provides.split(",")):
                made.providers.setdefault(each, []).append(name)
            if essential == "yes" or priority == "required":
                made.essential.append(name)
        return made

    def closure(self, names: Iterable[str]) -> set[str]:
        """Return these packages and all that they depend on, as far as they are installed."""
        found: set[str] = set()
        todo = [self._one([name]) for name in names]
        while todo:
            name = todo.pop()
            if name is None or name in found:
                continue
            found.add(name)
            todo += [self._one(ways) for ways in self.depends[name] if ways]
        return found

    def _one(self, ways: list[str]) -> str | None:
        for each in ways:
            if each in self.depends:
                return each
            if each in self.providers:
                return self.providers[each][0]
        return None


def _names(words: Iterable[str]) -> list[str]:
    """Names of packages without versions and architectures."""
    return [m.group() for word in words if (m := re.match(r"[a-z0-9][a-z0-9.+-]*", word.strip()))]


def _files(packages: Collection[str]) -> set[str]:
    """Paths of all that is in packages, as they are since /bin and /lib are links into /usr."""
    lines = _output("dpkg-query", "-L", *sorted(packages)).splitlines()
    return {_real(line) for line in lines if line.startswith("/")}


def _real(path: str) -> str:
    directory, _, name = path.rpartition("/")
    return f"{_resolved(directory or '/').rstrip('/')}/{name}"


@cache
def _resolved(directory: str) -> str:
    return os.path.realpath(directory)


def kept(commands: Collection[str], without: Collection[str] = ()) -> set[str]:
    """Return the paths below /usr and /etc that are there for these commands."""
    installed, wanted = Packages.installed(), needs(commands, without)
    packages = installed.closure([*(p for need in wanted for p in need.packages)])
    essential = installed.closure(installed.essential)
    programs = {way for need in wanted for way in need.ways if is_program(way)}
    brought = {path for path in _files(packages | essential) if not _is_program(path)}
    brought |= {path for path in _files(installed.essential) if _is_program(path)}
    brought |= {file for way in programs for file in _links(way)}
    written = [*_WRITTEN, *(path for name, path in _WRITTEN_BY.items() if name in packages)]
    for path in map(Path, written):
        brought |= {str(path), *map(str, path.rglob("*"))}
    # A declared file that is written by something else than its package.
    brought |= {_real(way) for need in wanted for way in need.ways if way.startswith("/")}
    return brought | set(_alternatives(brought))


def _is_program(path: str) -> bool:
    return path.rpartition("/")[0] in _PROGRAMS


def _links(program: str) -> Iterator[str]:
    """Where a program is, and what that is a link to, link by link."""
    found = shutil.which(program, path=":".join(_PROGRAMS))
    while found:
        path = Path(_real(found))
        yield str(path)
        found = str(path.parent / path.readlink()) if path.is_symlink() else None


def _alternatives(paths: Collection[str]) -> Iterator[str]:
    """The names that the administrator's choices give to these."""
    for directory in map(Path, _PROGRAMS[:2]):
        for each in directory.iterdir():
            chosen = each.is_symlink() and each.readlink().is_relative_to("/etc/alternatives")
            if chosen and str(each.resolve()) in paths:
                yield str(each)


def hide(kept: set[str]) -> None:
    """Hide what else there is below /usr and /etc from this process, and those that it starts."""
    _libc.unshare(_libc.CLONE_NEWNS)
    _libc.mount("none", "/", None, _libc.MS_REC | _libc.MS_PRIVATE)
    place = Path(tempfile.mkdtemp(prefix="towpath-view-"))
    _libc.mount("tmpfs", place, "tmpfs", 0, "mode=755")
    above = {str(parent) for path in kept for parent in Path(path).parents}
    for name in _HIDDEN:
        upper, work = place / name[1:], place / f"work-{name[1:]}"
        upper.mkdir()
        work.mkdir()
        _white_out(Path(name), upper, kept, above)
        options = f"lowerdir={name},upperdir={upper},workdir={work}"
        _libc.mount("overlay", name, "overlay", 0, options)
    _libc.umount(place, 2)  # MNT_DETACH
    place.rmdir()
    # Names of libraries that are hidden now.
    subprocess.run(["ldconfig"], check=True)


def _white_out(directory: Path, upper: Path, kept: set[str], above: set[str]) -> None:
    """Make of ``upper`` the layer that hides what is not kept."""
    shutil.copystat(directory, upper)
    for each in os.scandir(directory):
        if each.is_dir(follow_symlinks=False):
            if each.path in above:
                (upper / each.name).mkdir()
                _white_out(Path(each.path), upper / each.name, kept, above)
                continue
            if each.name == "__pycache__":
                continue
        if each.path not in kept:
            os.mknod(upper / each.name, stat.S_IFCHR, os.makedev(0, 0))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bare.view",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--for", dest="users", action="append", default=[], metavar="COMMAND")
    parser.add_argument("--without", action="append", default=[], metavar="WHAT|PACKAGE")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    hide(kept(options.users, options.without))
    os.environ["PATH"] = host.environment()["PATH"]
    os.execvp(options.command[0], options.command)  # noqa: S606 - the user's own command


if __name__ == "__main__":
    main()
