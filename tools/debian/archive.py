# SPDX-License-Identifier: Apache-2.0
"""Packages from a Debian archive: found, verified and downloaded by apt.

apt works in a directory of its own, so that the machine's package lists and
sources are not touched. Signatures are checked against Debian's keyring.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Sequence

MIRROR_VARIABLE = "TOWPATH_DEBIAN_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TOGETHER = ("--no-install-recommends", "--yes", "install")


class DownloadError(Exception):
    """Something can't be had from an archive."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One release of Debian, as an apt sees it that has nothing installed."""

    directory: Path
    options: tuple[str, ...]

    @classmethod
    def opened(cls, release: str, directory: Path) -> Archive:
        """Fetch a release's list of packages. ``directory`` is apt's, and does not exist yet."""
        for each in ("etc", "state/lists/partial", "cache/archives/partial"):
            (directory / each).mkdir(parents=True)
        (directory / "state/status").touch()
        sources = directory / "etc/sources.list"
        if not KEYRING.exists():
            raise DownloadError(f"no {KEYRING}; install debian-archive-keyring")
        sources.write_text(f"deb [arch=amd64 signed-by={KEYRING}] {mirror()} {release} main\n")
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State": directory / "state",
            "Dir::State::status": directory / "state/status",
            "Dir::Cache": directory / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
        }
        words = (word for name, value in options.items() for word in ("-o", f"{name}={value}"))
        made = cls(directory, tuple(words))
        made._get("update")
        return made

    def record(self, package: str) -> str:
        """Return what the archive says of a package's newest version."""
        return run("apt-cache", *self.options, "show", "--no-all-versions", package)

    def names(self) -> list[str]:
        """Return the names of all packages."""
        return run("apt-cache", *self.options, "pkgnames").split()

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Return these packages and all that they depend on, each with its version.

        DownloadError: they can't be installed together.
        """
        listed = self._get("--print-uris", *_TOGETHER, *packages)
        files = [line.split()[1] for line in listed.splitlines() if line.startswith("'")]
        split = [unquote(file).split("_") for file in files]
        return {name: version for name, version, *_ in split}

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Fetch just these, each ``NAME`` or ``NAME=VERSION``."""
        self._get("download", *packages, cwd=self.directory)
        return sorted(self.directory.glob("*.deb"))

    def download_all(self, packages: Sequence[str]) -> list[Path]:
        """Fetch these, and all that they depend on."""
        self._get("--download-only", *_TOGETHER, *packages)
        return sorted((self.directory / "cache/archives").glob("*.deb"))

    def _get(self, *words: str, cwd: Path | None = None) -> str:
        # Quieter, it wouldn't say what doesn't fit together.
        return run("apt-get", *self.options, "-q", *words, cwd=cwd)


def mirror() -> str:
    """Return the Debian mirror that this machine's apt uses, or the environment names."""
    if given := os.environ.get(MIRROR_VARIABLE):
        return given
    listed = run(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
    )
    for line in listed.splitlines():
        if "security" not in line:
            return line.strip()
    raise DownloadError(f"apt here has no Debian mirror; name one in {MIRROR_VARIABLE}")


def unpack(package: Path, root: Path) -> None:
    """Put a package's files below a directory."""
    run("dpkg-deb", "-x", package, root)


def cache_directory(part: str) -> Path:
    """Return where one of the tools keeps what it has fetched, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "towpath" / part


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what a command says. DownloadError: it isn't there or fails, with its own words."""
    words = [str(word) for word in command]
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise DownloadError(f"{words[0]} is not installed") from None
    if done.returncode:
        # apt tells on the other stream.
        told = done.stdout.partition("unmet dependencies:\n")[2] + done.stderr
        raise DownloadError(f"{words[0]} … {words[-1]}:\n{told.rstrip()}")
    return done.stdout
