# SPDX-License-Identifier: Apache-2.0
"""A node: kubelet and containerd in namespaces of their own, as a node of KIND's has them.

Its root reads as this machine's; what it writes is gone with it. It ends with the process
namespace of who has made it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyroute2.ethtool.ioctl import IoctlEthtool
from tools.debian.archive import cache_directory
from tools.kubernetes import binaries, control_plane, kept, state
from tools.kubernetes.errors import KubernetesError
from tools.kubernetes.programs import Program

from towpath.lab import network

if TYPE_CHECKING:
    from tools.kubernetes.control_plane import ControlPlane

Layout = Literal["unified", "elsewhere", "nowhere", "pure", "kind"]
"""Of a node's cgroups. unified: those of version 1, as the machine has them, and version 2 at
/sys/fs/cgroup/unified; elsewhere: at /run/cgroup2; nowhere: not mounted. pure: version 2 alone, at
/sys/fs/cgroup, without limits of what containers use. kind: that, nested as KIND has it."""
UNLIMITED = ("pure", "kind")
MOST_PODS = 250
"""A node's range has 254 addresses."""

_INIT = Path(__file__).with_name("node-init")
_RUNC = Path(__file__).with_name("runc.py")
_REPOSITORY = Path(__file__).resolve().parents[2]
_NAMESPACES = ("--mount", "--net", "--cgroup", "--uts", "--ipc", "--pid")
_SOCKET = "/run/containerd/containerd.sock"


class Node:
    """One of them. ``index``, from 1, decides its addresses. ``newer``: it has containerd 2."""

    def __init__(
        self,
        plane: ControlPlane,
        name: str,
        index: int,
        layout: Layout = "unified",
        *,
        newer: bool = False,
    ) -> None:
        self.plane = plane
        self.name = name
        self.layout = layout
        self.newer = newer
        self.address = f"192.168.88.{10 + index}"
        self.address6 = f"fd88::{10 + index}"
        self.pod_ranges: list[str] = []
        """Known once it is up."""
        self.directory = plane.directory / name
        self._cgroups: list[Path] = []
        self._init = Program(name, self._start_command(), plane.directory / f"{name}.log")
        self.containerd = self._program("containerd", self._containerd_command())
        self.kubelet = self._program("kubelet", self._kubelet_command())
        self.kube_proxy = self._program("kube-proxy", self._kube_proxy_command())

    @property
    def netns(self) -> str:
        """Its network namespace, as `ip netns` has it."""
        return self.name

    @property
    def pid(self) -> int:
        """Its first process."""
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        return int(children.read_text().split()[0])

    def up(self) -> None:
        """Start it and wait until the API server calls it ready."""
        images = kept.images()
        self.begin()
        self._write_configurations()
        self.containerd.start()
        self.containerd.wait_for(self._has_socket)
        self.kubelet.start()
        for image in images:
            self.import_image(image)
        self.kubelet.wait_for(self._has_ranges)
        self._write_network_configuration()
        self.kubelet.wait_for(self._is_ready)

    def begin(self) -> None:
        """Make its namespaces: a node on which nothing runs yet."""
        self.directory.mkdir()
        self._make_network()
        self._make_cgroups()
        self._init.start()
        self._init.wait_for((self.directory / "up").exists)

    def end(self) -> None:
        """End all that runs in it, and wait for nothing else. It can't be used any more."""
        self._init.stop(signal.SIGKILL)

    def down(self) -> None:
        """End all that runs in it, and remove it; what has not been begun is no error."""
        for program in (self.kube_proxy, self.kubelet, self.containerd):
            program.stop(signal.SIGKILL)
        self._init.stop(signal.SIGKILL)
        for each in self._cgroups:
            state.remove_cgroup(each)
        ip("netns", "del", self.netns)

    def command(self, *words: str | Path) -> list[str]:
        """What runs a command in it."""
        given = [os.fspath(word) for word in words]
        joined = [f"{each}/cgroup.procs" for each in self._cgroups]
        script = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
        enter = ["nsenter", "-t", str(self.pid), *_NAMESPACES, "--", *given]
        return ["sh", "-c", script, "sh", *joined, "--", *enter]

    def run(self, *words: str | Path, given: str | None = None) -> str:
        """Return what a command in it says. KubernetesError: it fails."""
        done = subprocess.run(
            self.command(*words), input=given, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise KubernetesError(f"{self.name}: {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def program(self, name: str, *words: str | Path) -> Program:
        """A program that will run in it until it is stopped."""
        return self._program(name, [os.fspath(word) for word in words])

    def import_image(self, archive: Path) -> None:
        """Give its containerd an image."""
        ctr = self.programs / "ctr"
        self.run(ctr, "--address", _SOCKET, "-n", "k8s.io", "images", "import", archive)

    def route_to(self, other: Node) -> None:
        """Reach another node's pods directly, as flannel's host-gw has it."""
        for each in other.pod_ranges:
            via = other.address6 if ":" in each else other.address
            ip("-n", self.netns, "route", "replace", each, "via", via)

    @property
    def programs(self) -> Path:
        """Where containerd and what belongs to it are."""
        return (kept.NEWER if self.newer else kept.RUNTIME).path / "usr/bin"

    def _program(self, name: str, words: list[str]) -> Program:
        return _Inside(self, name, words)

    def _start_command(self) -> list[str]:
        script = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
        cgroups = [f"{each}/cgroup.procs" for each in self._wanted_cgroups()]
        alone = ["--mount", "--cgroup", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        kept_as_is = [_REPOSITORY, cache_directory("kubernetes")]
        init = [_INIT, self.name, self.directory, kept.pause(), self.layout, *kept_as_is]
        enter = ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", *alone]
        return ["sh", "-c", script, "sh", *cgroups, "--", *enter, *map(str, init)]

    def _wanted_cgroups(self) -> list[Path]:
        """One in each hierarchy, below this process's own."""
        found = []
        name = f"{self.plane.directory.name}-{self.name}"
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mounted = state.CGROUPS / (controllers.removeprefix("name=") or "unified")
            if not mounted.exists():
                raise KubernetesError(f"{mounted} isn't there; nodes need cgroup v1 beside v2")
            found.append(mounted / path.lstrip("/") / name)
        return found

    def _make_cgroups(self) -> None:
        for path in self._wanted_cgroups():
            path.mkdir()
            self._cgroups.append(path)
            for each in ("cpuset.cpus", "cpuset.mems"):
                if (path / each).exists():
                    (path / each).write_text((path.parent / each).read_text())

    def _make_network(self) -> None:
        cable = f"{self.name}-up"
        ip("netns", "add", self.netns)
        inside = ("peer", "name", "eth0", "netns", self.netns)
        ip("link", "add", cable, "type", "veth", *inside)
        ip("link", "set", cable, "master", control_plane.BRIDGE, "up")
        # As on a wire: packets have checksums. A cable of this kind would leave them out.
        network.switch_off(self.netns, "eth0", *network.SENDERS_OFFLOADS)
        with closing(IoctlEthtool(cable)) as control:
            for offload in network.SENDERS_OFFLOADS:
                control.set_offload_flag(offload, 0)
        at = ("-n", self.netns)
        ip(*at, "link", "set", "lo", "up")
        ip(*at, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip(*at, "addr", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        ip(*at, "link", "set", "eth0", "up")
        ip(*at, "route", "add", "default", "via", control_plane.ADDRESS)
        ip(*at, "-6", "route", "add", "default", "via", control_plane.ADDRESS6)
        settings = (
            "ipv4.ip_forward=1",
            "ipv6.conf.all.forwarding=1",
            "ipv4.conf.all.send_redirects=0",
        )
        for setting in settings:
            name, value = setting.split("=")
            path = f"/proc/sys/net/{name.replace('.', '/')}"
            _run_in(self.netns, "sh", "-c", f"echo {value} >{path}")

    def _has_socket(self) -> bool:
        done = subprocess.run(self.command("test", "-S", _SOCKET), check=False)
        return done.returncode == 0

    def _node(self) -> dict[str, Any]:
        status, found = self.plane.request("GET", f"/api/v1/nodes/{self.name}")
        return found if status == 200 else {}  # noqa: PLR2004

    def _has_ranges(self) -> bool:
        self.pod_ranges = self._node().get("spec", {}).get("podCIDRs", [])
        return bool(self.pod_ranges)

    def _is_ready(self) -> bool:
        conditions = self._node().get("status", {}).get("conditions", [])
        return {"Ready": "True"}.items() <= {c["type"]: c["status"] for c in conditions}.items()

    def _write_configurations(self) -> None:
        runc = kept.RUNTIME.path / "usr/sbin/runc"
        if self.layout in UNLIMITED:
            wrapper = self.directory / "runc"
            wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {_RUNC} {runc} "$@"\n')
            wrapper.chmod(0o755)
            runc = wrapper
        (self.directory / "containerd.toml").write_text(
            (_NEWER if self.newer else _CONTAINERD).format(runtime=kept.RUNTIME.path, runc=runc)
        )
        (self.directory / "kubelet.json").write_text(json.dumps(self._kubelet_configuration()))

    def _write_network_configuration(self) -> None:
        """A bridge with addresses of the range that the node was given, as kubenet's was."""
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": each}] for each in self.pod_ranges],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }
        bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
        whole = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, bandwidth]}
        # Renamed when it is whole, within the directory: containerd looks when something there is
        # written or renamed, not when something is made.
        new = self.directory / "networks/.new"
        new.write_text(json.dumps(whole))
        new.rename(self.directory / "networks/10-pods.conflist")

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": "/kubelet" if self.layout == "kind" else "",
            "maxPods": MOST_PODS,
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.plane.authority)},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDomain": "cluster.local",
            "failSwapOn": False,
            "protectKernelDefaults": True,
            "serializeImagePulls": False,
            # The machine's disk is not the node's to mind.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "0%",
                "imagefs.available": "0%",
            },
        }

    def _containerd_command(self) -> list[str]:
        return [
            str(self.programs / "containerd"),
            "--config",
            str(self.directory / "containerd.toml"),
        ]

    def _kubelet_command(self) -> list[str]:
        return [
            str(binaries.program("kubelet")),
            f"--config={self.directory}/kubelet.json",
            f"--kubeconfig={self.plane.node_kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address},{self.address6}",
        ]

    def _kube_proxy_command(self) -> list[str]:
        return [
            str(binaries.program("kube-proxy")),
            f"--kubeconfig={self.plane.node_kubeconfig}",
            f"--hostname-override={self.name}",
            "--proxy-mode=nftables",
            # The machine's own table is not the node's to size.
            "--conntrack-max-per-core=0",
        ]


class _Inside(Program):
    """A program in a node, whose way in is known only when it starts."""

    def __init__(self, node: Node, name: str, words: list[str]) -> None:
        super().__init__(f"{node.name}: {name}", words, node.directory / f"{name}.log")
        self._node = node
        self._words = words

    def start(self, *more: str) -> None:
        runtime = kept.RUNTIME.path
        own = f"{self._node.programs}:{runtime}/usr/bin:{runtime}/usr/sbin"
        path = f"PATH={own}:{os.environ['PATH']}:/usr/sbin:/sbin"
        library = f"LD_LIBRARY_PATH={runtime}/usr/lib/x86_64-linux-gnu"
        self.command = self._node.command("env", path, library, *self._words)
        super().start(*more)

    @property
    def pid(self) -> int:
        """Of the program itself, not of what has entered the node for it."""
        outer = super().pid
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        return int(children[0]) if children else outer


_CONTAINERD = """version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/towpath-pause:1"
  # A container's root may lack CAP_SYS_RESOURCE here; runc would fail without a word.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{runtime}/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
"""

_NEWER = """version = 3
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/towpath-pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{runtime}/usr/lib/cni"]
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
"""
"""The same for containerd 2."""


def ip(*words: str) -> None:
    """Run it. KubernetesError: it fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _run_in(netns: str, *words: str) -> None:
    ip("netns", "exec", netns, *words)
