# SPDX-License-Identifier: Apache-2.0
"""A control plane: etcd, API server, controller-manager, scheduler. It answers after some 3 s.

It lives in the network namespace of who makes it, which should be one of its own; nodes are
joined to it by a bridge there.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.kubernetes import binaries, certificates, state
from tools.kubernetes.errors import KubernetesError
from tools.kubernetes.programs import Program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BRIDGE = "towpath-kube"
ADDRESS = "192.168.88.1"
ADDRESS6 = "fd88::1"
SERVICES = ("10.96.0.0/16", "fd96::/108")
PODS = ("10.244.0.0/16", "fd44::/56")
TOKEN = "towpath-admin"  # noqa: S105 - of a server that nobody else can reach
COMPONENTS = ("etcd", "apiserver", "controller-manager", "scheduler")
_PROGRAMS = {
    "etcd": "etcd",
    "apiserver": "kube-apiserver",
    "controller-manager": "kube-controller-manager",
    "scheduler": "kube-scheduler",
}


class ControlPlane:
    """One that runs.

    ``with_nodes``: kubelets will write leases. Without them the controller that takes a silent
    node's pods for dead is left out, so that nodes and pods can be objects and nothing else.
    ``options``: further arguments of components, by name.
    """

    def __init__(
        self,
        directory: Path,
        *,
        with_nodes: bool = False,
        options: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.directory = directory
        self.token = TOKEN
        self.etcd_port, self._peer_port, self.port = _free_ports(3)
        self.url = f"https://127.0.0.1:{self.port}"
        """Where processes of the same network namespace reach it."""
        self.node_url = f"https://{ADDRESS}:{self.port}"
        """Where nodes do."""
        self.authority = directory / "ca.crt"
        self.kubeconfig = directory / "kubeconfig"
        self.node_kubeconfig = directory / "node-kubeconfig"
        self._with_nodes = with_nodes
        self._options = options or {}
        self._programs = {name: self._program(name) for name in COMPONENTS}

    def start(self, *names: str) -> None:
        """Start these components (all, in their order) and wait until they are ready."""
        for name in names or COMPONENTS:
            program = self.program(name)
            program.start(*self._options.get(name, ()))
            if name == "etcd":
                program.wait_for(self._etcd_answers)
            elif name == "apiserver":
                program.wait_for(self.ready)

    def stop(
        self, *names: str, number: signal.Signals = signal.SIGTERM, patience: float = 10.0
    ) -> None:
        """Stop these components (all: etcd last, without which the API server wouldn't end).

        A terminated API server serves open watches for a minute: after ``patience`` it is killed.
        """
        for name in names or reversed(COMPONENTS):
            self.program(name).stop(number, patience)

    def program(self, name: str) -> Program:
        """One of the components: its pid, its log, signals to it."""
        if name not in self._programs:
            raise KubernetesError(f"no component {name}; there are: {', '.join(COMPONENTS)}")
        return self._programs[name]

    def kubectl(self, *words: str, given: str | None = None) -> str:
        """Return what kubectl says; ``given``: on its standard input. KubernetesError: it fails."""
        command = [str(binaries.program("kubectl")), "--kubeconfig", str(self.kubeconfig), *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KubernetesError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Make or change objects, by kubectl."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", given=json.dumps(items))

    def get(self, *words: str) -> Any:
        """Return what ``kubectl get`` does, decoded."""
        return json.loads(self.kubectl("get", "-o", "json", *words))

    def request(
        self, method: str, path: str, body: Any = None, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """Ask the API server by HTTP: the status and the body, decoded.

        OSError: it isn't there.
        """
        context = ssl.create_default_context(cafile=str(self.authority))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=60, context=context
        )
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(text) if is_json else text.decode()

    def ready(self) -> bool:
        """Whether the API server says that it is."""
        try:
            return self.request("GET", "/readyz")[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def snapshot(self, path: Path) -> None:
        """Keep what etcd has."""
        endpoint = f"http://127.0.0.1:{self.etcd_port}"
        _run(binaries.program("etcdctl"), "--endpoints", endpoint, "snapshot", "save", path)

    def restore(self, path: Path, *, bump: bool = False) -> None:
        """Put etcd back to a snapshot. The API server runs on, and may believe what was before.

        ``bump``: as documented for Kubernetes, with a revision that no client has seen.
        """
        self.stop("etcd")
        self._forget()
        words = ("--bump-revision", "1000000000", "--mark-compacted") if bump else ()
        peer = f"http://127.0.0.1:{self._peer_port}"
        cluster = ("--initial-cluster", f"default={peer}", "--initial-advertise-peer-urls", peer)
        data = ("--data-dir", self._data)
        _run(binaries.program("etcdutl"), "snapshot", "restore", path, *data, *cluster, *words)
        self.start("etcd")

    def empty(self) -> None:
        """Let etcd begin anew with nothing. The API server runs on."""
        self.stop("etcd")
        self._forget()
        self.start("etcd")

    @property
    def _data(self) -> Path:
        return self.directory / "etcd"

    def _forget(self) -> None:
        if self._data.exists():
            shutil.rmtree(self._data)

    def _etcd_answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.etcd_port, timeout=5)
        try:
            connection.request("GET", "/health")
            return b'"true"' in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def prepare(self) -> None:
        """Write keys, certificates and kubeconfigs, and make the bridge."""
        certificates.make_authority(self.directory)
        hosts = ("127.0.0.1", "::1", ADDRESS, ADDRESS6, "10.96.0.1", "fd96::1")
        dns = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        names = [*(f"IP:{each}" for each in hosts), *(f"DNS:{each}" for each in dns)]
        certificates.sign(self.directory, "apiserver", "/CN=kube-apiserver", names)
        client = "/O=system:masters/CN=apiserver-kubelet-client"
        certificates.sign(self.directory, "kubelet-client", client)
        certificates.make_signing_key(self.directory / "sa.key")
        (self.directory / "tokens.csv").write_text(f'{TOKEN},admin,1,"system:masters"\n')
        for path, url in ((self.kubeconfig, self.url), (self.node_kubeconfig, self.node_url)):
            path.write_text(json.dumps(self.kubeconfig_for(url)))
        _make_bridge()

    def kubeconfig_for(self, url: str, token: str = TOKEN) -> dict[str, Any]:
        """A kubeconfig's content; JSON is YAML."""
        cluster = {"server": url, "certificate-authority": str(self.authority)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "towpath", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "towpath", "context": {"cluster": "towpath", "user": "admin"}}],
            "current-context": "towpath",
        }

    def _program(self, name: str) -> Program:
        arguments = {
            "etcd": self._etcd,
            "apiserver": self._apiserver,
            "controller-manager": self._controller_manager,
            "scheduler": self._client,
        }[name]()
        command: list[str | Path] = [binaries.program(_PROGRAMS[name]), *arguments]
        return Program(name, command, self.directory / f"{name}.log")

    def _etcd(self) -> list[str]:
        client = f"http://127.0.0.1:{self.etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        return [
            f"--data-dir={self._data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]

    def _apiserver(self) -> list[str]:
        at = self.directory
        return [
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=::",
            f"--advertise-address={ADDRESS}",
            f"--cert-dir={at}",
            f"--tls-cert-file={at}/apiserver.crt",
            f"--tls-private-key-file={at}/apiserver.key",
            f"--client-ca-file={at}/ca.crt",
            f"--kubelet-client-certificate={at}/kubelet-client.crt",
            f"--kubelet-client-key={at}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--token-auth-file={at}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={at}/sa.key",
            f"--service-account-signing-key-file={at}/sa.key",
            f"--service-cluster-ip-range={','.join(SERVICES)}",
            "--allow-privileged=true",
        ]

    def _controller_manager(self) -> list[str]:
        controllers = "*" if self._with_nodes else "*,-node-lifecycle-controller"
        return [
            *self._client(),
            f"--controllers={controllers}",
            f"--service-account-private-key-file={self.directory}/sa.key",
            f"--root-ca-file={self.authority}",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={','.join(PODS)}",
            f"--service-cluster-ip-range={','.join(SERVICES)}",
        ]

    def _client(self) -> list[str]:
        ways = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
        words = [f"--{each}={self.kubeconfig}" for each in ways]
        # What listens is nobody's here, and two of them don't meet.
        return [*words, "--leader-elect=false", "--secure-port=0"]


@contextmanager
def control_plane(
    *, with_nodes: bool = False, options: Mapping[str, Sequence[str]] | None = None
) -> Iterator[ControlPlane]:
    """One that runs, with its state in a directory of its own; nothing is left of it."""
    with state.directory() as directory:
        made = ControlPlane(directory, with_nodes=with_nodes, options=options)
        made.prepare()
        try:
            made.start()
            yield made
        finally:
            made.stop(number=signal.SIGKILL)
            remove_bridge()


def _make_bridge() -> None:
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    _ip("addr", "add", f"{ADDRESS6}/64", "dev", BRIDGE, "nodad")
    _ip("link", "set", BRIDGE, "up")
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")


def remove_bridge() -> None:
    """The nodes' cables end there."""
    _ip("link", "del", BRIDGE)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str | Path) -> None:
    command = [os.fspath(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"{' '.join(command)}: {done.stderr.strip()}")


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
