# SPDX-License-Identifier: Apache-2.0
"""Programs of Kubernetes, etcd and Helm: compiled once by Go from pinned modules, and kept.

Each of the modules below ``modules/`` names what it builds (``tools.go``), of which version
(``go.mod``), and the checksums of all that it is made of (``go.sum``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.debian.archive import cache_directory
from tools.kubernetes.errors import KubernetesError
from tools.kubernetes.versions import ETCD, HELM, KUBERNETES

MODULES = Path(__file__).with_name("modules")
_FILES = ("go.mod", "go.sum", "tools.go")


@dataclass(frozen=True, slots=True)
class Module:
    """What is built together."""

    name: str
    programs: dict[str, str]
    """Names, and the packages that they are."""
    flags: tuple[str, ...] = ()
    """For the linker."""

    @property
    def directory(self) -> Path:
        """Where it says what it is made of."""
        return MODULES / self.name

    @property
    def digest(self) -> str:
        """Of all that decides what is built."""
        read = [(self.directory / each).read_bytes() for each in _FILES]
        return hashlib.sha256(b"".join([*read, repr(self).encode()])).hexdigest()

    @property
    def kept(self) -> Path:
        """Where its programs are, once they are built."""
        return cache() / self.name

    @property
    def is_kept(self) -> bool:
        """Whether they are, from just these versions."""
        stamp = self.kept / "digest"
        return stamp.exists() and stamp.read_text() == self.digest


_COMMANDS = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"),
    *("kubelet", "kubectl"),
)
_SHOWN = f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES}"

SUPPORTED = (
    Module(
        "etcd",
        {
            "etcd": "go.etcd.io/etcd/server/v3",
            "etcdctl": "go.etcd.io/etcd/etcdctl/v3",
            "etcdutl": "go.etcd.io/etcd/etcdutl/v3",
        },
    ),
    Module(
        "kubernetes",
        {each: f"k8s.io/kubernetes/cmd/{each}" for each in _COMMANDS},
        (_SHOWN,),
    ),
)
CHARTS = Module(
    "helm",
    {"helm": "helm.sh/helm/v4/cmd/helm"},
    (f"-X helm.sh/helm/v4/internal/version.version=v{HELM}",),
)
"""What renders the chart: no cluster needs it."""
VERSIONS = {"etcd": ETCD, "kubernetes": KUBERNETES, "helm": HELM}


def cache() -> Path:
    """Where all of it is kept."""
    return cache_directory("kubernetes") / KUBERNETES


def program(name: str) -> Path:
    """Where a program is kept. KubernetesError: it was never built."""
    module = next(each for each in (*SUPPORTED, CHARTS) if name in each.programs)
    if not module.is_kept:
        raise KubernetesError(f"{name} isn't built; `python -m tools.kubernetes --build` does that")
    return module.kept / name


def missing() -> list[str]:
    """Which modules aren't built."""
    return [each.name for each in SUPPORTED if not each.is_kept]


def build(module: Module) -> None:
    """Build a module's programs, unless they are kept. KubernetesError: that fails."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{module.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache().glob(f"{module.name}-*"):
            shutil.rmtree(left)  # by a run that was killed
        if module.is_kept:
            return
        with TemporaryDirectory(dir=cache(), prefix=f"{module.name}-") as name:
            made = Path(name, "made")
            made.mkdir()
            for each, package in module.programs.items():
                _compile(module, package, made / each)
            (made / "digest").write_text(module.digest)
            shutil.rmtree(module.kept, ignore_errors=True)
            made.rename(module.kept)


def _compile(module: Module, package: str, out: Path) -> None:
    """One at a time: they are linked with up to 2.7 GB of memory each."""
    flags = " ".join(("-s", "-w", *module.flags))
    command = ["build", "-trimpath", "-tags", "tools", "-ldflags", flags, "-o", str(out), package]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    found = go()
    if found is None:
        raise KubernetesError("Go isn't installed; go.dev has it (1.26 or newer is needed)")
    done = subprocess.run(
        [found, *command],
        cwd=module.directory,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise KubernetesError(f"go build {package}: {done.stderr.strip()[-3000:]}")


def go(name: str = "go") -> str | None:
    """Where Go is. It isn't among declared packages: distributions' own are too old for this."""
    return shutil.which(name)
