# SPDX-License-Identifier: Apache-2.0
"""Kernels from a Debian mirror: found, verified and downloaded by apt, unpacked, cached.

apt works in a directory of its own, so that the machine's package lists and
sources are not touched. Signatures are checked against Debian's keyring.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.kernels.supported import Kernel

MIRROR_VARIABLE = "TOWPATH_DEBIAN_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PARTS = re.compile(r"linux-(image|binary|modules)-\S*cloud-amd64\S*")


class DownloadError(Exception):
    """A kernel can't be had."""


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked kernel. ``release`` is what `uname -r` says in it."""

    root: Path
    release: str

    @property
    def kernel(self) -> Path:
        """The bootable image."""
        for path in (self.root / f"boot/vmlinuz-{self.release}", self.modules / "vmlinuz"):
            if path.exists():
                return path
        raise DownloadError(f"no kernel image below {self.root}")

    @property
    def modules(self) -> Path:
        """The directory of its modules."""
        return self.root / "lib/modules" / self.release


def cache_directory() -> Path:
    """Return where kernels are kept between runs, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "towpath" / "kernels"


def obtain(kernel: Kernel) -> Image:
    """Return an unpacked kernel, from the cache if it is there. DownloadError: it can't be had."""
    directory = cache_directory() / kernel.name
    unpacked = directory / "root"
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for package in _download(kernel, directory):
            _run("dpkg-deb", "-x", package, unpacked)
            package.unlink()
        _merge_usr(unpacked)
        _run("depmod", "-b", unpacked, _release(unpacked))
        (directory / "complete").touch()
    return Image(unpacked, _release(unpacked))


def _download(kernel: Kernel, directory: Path) -> list[Path]:
    apt = _private_apt(kernel, directory / "apt")
    _run("apt-get", *apt, "-qq", "update")
    _run("apt-get", *apt, "-qq", "download", *_parts(kernel, apt), cwd=directory)
    shutil.rmtree(directory / "apt")
    return sorted(directory.glob("*.deb"))


def _parts(kernel: Kernel, apt: list[str]) -> list[str]:
    """Return the packages that image and modules are split into, with their versions."""
    wanted, found = [kernel.package], []
    while wanted:
        name = wanted.pop()
        record = _run("apt-cache", *apt, "show", "--no-all-versions", name)
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        names = [match.group() for match in _PARTS.finditer(depends.group(1) if depends else "")]
        wanted += [each for each in names if each not in found and each not in wanted]
        if re.match(r"linux-\w+-\d", name):
            found.append(f"{name}={kernel.version}" if kernel.version else name)
    return found


def _private_apt(kernel: Kernel, directory: Path) -> list[str]:
    """Return the options that make apt work in ``directory``, with one release in its sources."""
    for each in ("etc", "state/lists/partial", "cache/archives/partial"):
        (directory / each).mkdir(parents=True)
    (directory / "state/status").touch()
    sources = directory / "etc/sources.list"
    if not KEYRING.exists():
        raise DownloadError(f"no {KEYRING}; install debian-archive-keyring")
    sources.write_text(f"deb [arch=amd64 signed-by={KEYRING}] {mirror()} {kernel.release} main\n")
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": directory / "state",
        "Dir::State::status": directory / "state/status",
        "Dir::Cache": directory / "cache",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def mirror() -> str:
    """Return the Debian mirror that this machine's apt uses, or the environment names."""
    if given := os.environ.get(MIRROR_VARIABLE):
        return given
    listed = _run(
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


def _merge_usr(root: Path) -> None:
    """Newer packages have usr/lib/modules only."""
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")


def _release(root: Path) -> str:
    (only,) = (root / "lib/modules").iterdir()
    return only.name


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DownloadError(f"{words[0]} is not installed") from None
    if done.returncode:
        raise DownloadError(f"{' '.join(words[-3:])}: {done.stderr.strip()}")
    return done.stdout
