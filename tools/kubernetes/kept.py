# SPDX-License-Identifier: Apache-2.0
"""Roots of Debian packages and images made from them: made once, and kept beside the programs."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tools.debian.archive import Archive, DownloadError, unpack
from tools.kubernetes import oci
from tools.kubernetes.binaries import cache
from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator

RELEASE = "bookworm"
_SMALL = tuple(Path(__file__).with_name(f"{each}.c") for each in ("pause", "burst"))
"""Programs of one image, which need nothing else."""
_WWW = Path(__file__).with_name("pod.py")
# Debian's packages of before /bin and /lib were links into /usr have files there.
_MERGED = ("bin", "lib", "lib64", "sbin")
PAUSE_IMAGE = "localhost/towpath-pause:1"
"""It waits; ``/burst`` sends first."""
TOOLS_IMAGE = "localhost/towpath-tools:1"


@dataclass(frozen=True, slots=True)
class Root:
    """Packages of a release of Debian, unpacked, and nothing set up."""

    name: str
    packages: tuple[str, ...]
    dependencies: str = "with"
    """``with``: all that they depend on is there too; ``without``: just these."""
    release: str = field(default=RELEASE, repr=False)

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return cache() / self.name

    @property
    def digest(self) -> str:
        """Of what it is made of."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    @property
    def is_kept(self) -> bool:
        """Whether it is there."""
        stamp = self.path / "digest"
        return stamp.exists() and stamp.read_text() == self.digest


RUNTIME = Root(
    "runtime", ("containerd", "runc", "containernetworking-plugins", "libseccomp2"), "without"
)
"""What makes a machine a node, beside the kubelet."""
NEWER = Root(
    "runtime-newer", ("containerd", "containernetworking-plugins"), "without", release="sid"
)
"""containerd 2, and a portmap plugin that has nftables too: what a test wants, beside RUNTIME."""
TOOLS = Root("tools", ("curl", "iperf3", "iproute2", "nginx-light", "python3", "iputils-ping"))
"""What pods of tests are made of."""
SUPPORTED = (RUNTIME, TOOLS)
IPTABLES = Root("iptables", ("iptables",))
"""What kube-proxy in iptables mode runs: made when a test wants it."""


def missing() -> list[str]:
    """What isn't kept, and has to be fetched."""
    return [each.name for each in SUPPORTED if not each.is_kept]


def pause() -> Path:
    """The program that a pod's and a node's first process runs."""
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in _SMALL)).hexdigest()[:12]
    return cache() / f"pause-{digest}/pause"


def make() -> None:
    """Make what isn't kept. KubernetesError: it can't be had."""
    for root in SUPPORTED:
        make_root(root)
    _make_small()


def make_more() -> None:
    """Make what only some tests want. KubernetesError: it can't be had."""
    for root in (IPTABLES, NEWER):
        make_root(root)


def _make_small() -> None:
    with _new(pause().parent) as made:
        if made is not None:
            for each in _SMALL:
                _compile(each, made / each.stem)


def make_root(root: Root) -> None:
    """Make one of them, unless it is kept."""
    with _new(root.path, None if root.is_kept else root.digest) as made:
        if made is None:
            return
        try:
            with TemporaryDirectory(dir=made.parent) as name:
                archive = Archive.opened(root.release, Path(name, "apt"))
                get = archive.download_all if root.dependencies == "with" else archive.download
                _fill(made, get(list(root.packages)))
        except DownloadError as error:
            raise KubernetesError(f"{root.name}: {error}") from None
        (made / "digest").write_text(root.digest)


def images() -> list[Path]:
    """The archives of the images that every node is given, made if they aren't there."""
    made = [_pause_image(), _tools_image()]
    return sorted(made)


def _pause_image() -> Path:
    out = pause().parent / "image.tar"
    if not out.exists():
        with TemporaryDirectory(dir=cache()) as name:
            root = Path(name)
            for each in _SMALL:
                shutil.copy2(pause().with_name(each.stem), root / each.stem)
            _etc(root)
            oci.write(root / "image.tar", PAUSE_IMAGE, root, ["/pause"])
            (root / "image.tar").replace(out)
    return out


def _tools_image() -> Path:
    """It serves what tests ask pods (``pod.py``)."""
    digest = hashlib.sha256(_WWW.read_bytes() + TOOLS.digest.encode()).hexdigest()[:12]
    out = cache() / f"tools-image-{digest}.tar"
    if not out.exists():
        with TemporaryDirectory(dir=cache()) as name:
            root = Path(name, "root")
            shutil.copytree(TOOLS.path, root, symlinks=True)
            (root / "digest").unlink()
            slim(root)
            shutil.copy(_WWW, root / "pod.py")
            oci.write(Path(name, "image.tar"), TOOLS_IMAGE, root, ["/usr/bin/python3", "/pod.py"])
            Path(name, "image.tar").replace(out)
    return out


def slim(root: Path) -> None:
    """Make a root of packages one that a container runs: without manuals, with a user."""
    for each in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache"):
        shutil.rmtree(root / each, ignore_errors=True)
    _etc(root)


def _etc(root: Path) -> None:
    (root / "etc").mkdir(exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


def _fill(root: Path, packages: list[Path]) -> None:
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        unpack(package, root)


def _compile(source: Path, out: Path) -> None:
    command = ["clang", "-O2", "-static", "-o", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"clang {source.name}: {done.stderr.strip()}")


@contextmanager
def _new(place: Path, digest: str | None = "") -> Iterator[Path | None]:
    """A directory that becomes ``place`` when it is filled; None: it is there."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = place / "digest"
        there = stamp.exists() and stamp.read_text() == digest if digest else place.exists()
        if there or digest is None:
            yield None
            return
        with TemporaryDirectory(dir=cache(), prefix=f"{place.name}-") as name:
            made = Path(name, "made")
            made.mkdir()
            yield made
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
