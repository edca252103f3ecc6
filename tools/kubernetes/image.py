# SPDX-License-Identifier: Apache-2.0
"""Towpath's container image: Debian's packages, the wheel and what that needs, on an empty base.

    python -m tools.kubernetes.image OUT.tar [NAME:TAG]

An OCI archive, for `ctr -n k8s.io images import` and whatever else takes one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.kubernetes import binaries, kept, oci
from tools.kubernetes.errors import KubernetesError

from towpath.doctor.outside import declared

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "localhost/towpath:1"
# Of Debian 12, whatever runs here.
_PYTHON = "3.11"
_PLATFORMS = ("linux_x86_64", *(f"manylinux_2_{each}_x86_64" for each in (36, 28, 26, 17)))
_PACKAGES = "opt/towpath"


def packages() -> tuple[str, ...]:
    """What an installed Towpath uses from outside its own Python packages."""
    users = {"run"}
    found = {each.packages[0] for each in declared() if users & set(each.users)}
    return ("python3", *sorted(found))


def write(out: Path, name: str = NAME) -> None:
    """Make the image. KubernetesError: something of it can't be had."""
    base = kept.Root("towpath-base", packages())
    kept.make_root(base)
    with TemporaryDirectory(dir=binaries.cache()) as temporary:
        root = Path(temporary, "root")
        shutil.copytree(base.path, root, symlinks=True)
        (root / "digest").unlink()
        kept.slim(root)
        _trust(root)
        _install(root / _PACKAGES)
        _command(root / "usr/bin/towpath")
        made = Path(temporary, "image.tar")
        entry = ["/usr/bin/python3", "-P", "-m", "towpath"]
        environment = [
            f"PYTHONPATH=/{_PACKAGES}",
            "PYTHONDONTWRITEBYTECODE=1",
            "PYTHONUNBUFFERED=1",
            "PATH=/usr/sbin:/usr/bin",
        ]
        oci.write(made, name, root, entry, environment)
        made.replace(out)


def kept_image() -> Path:
    """The image of this checkout, made if it isn't there."""
    digest = hashlib.sha256()
    sources = [*(REPOSITORY / "src").rglob("*"), *(REPOSITORY / "tools/kubernetes").glob("*.py")]
    for path in sorted([*sources, REPOSITORY / "constraints.txt", REPOSITORY / "pyproject.toml"]):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    out = binaries.cache() / f"towpath-image-{digest.hexdigest()[:12]}.tar"
    if not out.exists():
        for before in binaries.cache().glob("towpath-image-*.tar"):
            before.unlink()
        write(out)
    return out


def _install(target: Path) -> None:
    """The wheel, and what it requires in the versions that are tested."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with TemporaryDirectory() as name:
        _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", name, str(REPOSITORY))
        (wheel,) = Path(name).glob("towpath-*.whl")
        platforms = [word for each in _PLATFORMS for word in ("--platform", each)]
        chosen = ["--only-binary=:all:", "--python-version", _PYTHON, "--implementation", "cp"]
        pinned = ["-c", str(REPOSITORY / "constraints.txt")]
        _run(*pip, "install", "--target", str(target), *chosen, *platforms, *pinned, str(wheel))


def _trust(root: Path) -> None:
    """What ca-certificates' own script would write: nothing is set up here."""
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    whole = root / "etc/ssl/certs/ca-certificates.crt"
    whole.parent.mkdir(parents=True, exist_ok=True)
    whole.write_text("".join(each.read_text() for each in certificates))


def _command(path: Path) -> None:
    """For who is in the container: `kubectl exec POD -- towpath status`."""
    path.write_text("#!/usr/bin/python3 -P\nfrom towpath.cli.main import main\n\nmain()\n")
    path.chmod(0o755)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"{' '.join(words)}: {done.stderr.strip()[-3000:]}")


if __name__ == "__main__":
    write(Path(sys.argv[1]).resolve(), *sys.argv[2:3])
