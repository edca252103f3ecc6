# SPDX-License-Identifier: Apache-2.0
"""A real cluster of two nodes with Towpath on it, to look at; nothing of it is left.

    make kubernetes-demo                                 then a shell, with kubectl and `node`
    towpath lab --kubernetes                             the same, from a checkout
    python -m tools.kubernetes.demo --proxy kube-proxy   or served by kube-proxy, or by `none`
    python -m tools.kubernetes.demo -- COMMAND...        COMMAND in place of a shell

Needs root. Go builds Kubernetes the first time, which takes some 10 minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import yaml
from tools.kubernetes import binaries, chart, cluster, image
from tools.kubernetes.__main__ import build
from tools.kubernetes.cluster import is_ready, server_pod
from tools.kubernetes.errors import KubernetesError

from towpath.lab.interrupt import Interrupted, interruptible
from towpath.signals import asked_to_end

_INSIDE = "--inside"
_ALONE = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_NODE = """#!/bin/sh
# What runs a command on a node: node NAME COMMAND...
name=$1; shift
case $name in
{cases}*) echo "no node $name; there are: {names}" >&2; exit 2 ;;
esac
exec nsenter -t "$pid" -m -n -C -u -i -p -- env PATH="{path}" PYTHONPATH="{source}" "$@"
"""
_HINTS = """
Two nodes, a Deployment `web`, its Service `web`, a pod `client`; served by {proxy}.

  kubectl get pods -A -o wide
  kubectl exec client -- curl -s http://{address}
  kubectl scale deployment web --replicas=6
{more}
`exit` ends it.
"""
_OF_TOWPATH = """  node one towpath service list
  node one towpath status
"""
_INTERRUPTED = 128 + signal.SIGINT


def main() -> int:
    """Go into namespaces of its own, and do what the command line says there."""
    inside = _INSIDE in sys.argv[1:2]
    options = _options(sys.argv[1 + inside :])
    try:
        return _look_inside(options) if inside else _go_inside(options)
    except KubernetesError as error:
        print(error, file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        print("interrupted; nothing of it is left", file=sys.stderr)
        return _INTERRUPTED


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.kubernetes.demo",
        description="A real cluster of two nodes on this machine, to look at. Needs root.",
    )
    parser.add_argument(
        "--proxy",
        choices=("towpath", "kube-proxy", "none"),
        default="towpath",
        help="who serves Services (default: towpath)",
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="in place of a shell")
    return parser.parse_args(words)


def _go_inside(options: argparse.Namespace) -> int:
    if os.geteuid():
        raise KubernetesError("the demo makes nodes: run it as root")
    build()
    if options.proxy == "towpath":
        _say("an image of this checkout")
        image.kept_image()  # inside there is no way to where its packages are
    words = [sys.executable, "-m", "tools.kubernetes.demo", _INSIDE, *sys.argv[1:]]
    child = subprocess.Popen(["unshare", *_ALONE, *words])
    # A terminal sends signals to all of its processes, others to this one alone. The cluster is
    # taken down by who has made it.
    for number in asked_to_end():
        signal.signal(number, lambda number, _: _hand_on(child, number))
    return child.wait()


def _hand_on(child: subprocess.Popen[bytes], number: int) -> None:
    """To who is inside: `unshare` waits for it, and takes none."""
    with suppress(OSError, ValueError):
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(children[0]), number)


def _look_inside(options: argparse.Namespace) -> int:
    for kind, at in (("tmpfs", "/run"), ("bpf", "/sys/fs/bpf")):
        subprocess.run(["mount", "-t", kind, "none", at], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with interruptible():
        _say("a control plane and two nodes")
        with cluster.cluster() as made:
            _say(f"Services served by {options.proxy}")
            serve(made, options.proxy)
            _say("a Deployment, a Service and a pod")
            make_workload(made)
            return look(made, options.proxy, options.command)


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def serve(made: cluster.Cluster, proxy: str) -> None:
    """Have somebody serve Services on the nodes."""
    if proxy == "kube-proxy":
        for node in made.nodes:
            node.kube_proxy.start()
    elif proxy == "towpath":
        archive = image.kept_image()
        for node in made.nodes:
            node.import_image(archive)
        made.plane.kubectl("apply", "-f", str(chart.PLAIN / "rbac.yaml"))
        text = (chart.PLAIN / "towpath.yaml").read_text()
        text = text.replace("https://192.0.2.1:6443", made.plane.node_url)
        made.plane.apply(*yaml.safe_load_all(text))
        label = ("pods", "-n", chart.NAMESPACE, "-l", "app.kubernetes.io/name=towpath")
        wanted = [True] * len(made.nodes)
        made.wait(
            lambda: [is_ready(each) for each in made.plane.get(*label)["items"]] == wanted,
            120,
            "agents ready",
        )


def make_workload(made: cluster.Cluster) -> None:
    """A Deployment with a Service, and a pod that asks."""
    pod = server_pod("web", "one", {"web": 8080})
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod["spec"]}
    del template["spec"]["nodeName"]
    environment = template["spec"]["containers"][0]["env"]
    environment[0] = {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
    ports = [{"port": 80, "targetPort": 8080}]
    made.make(
        deployment | {"spec": spec},
        service | {"spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": ports}},
        server_pod("client", "one", {"idle": 9}),
    )
    made.plane.kubectl("rollout", "status", "deployment/web", "--timeout=120s")


def look(made: cluster.Cluster, proxy: str, command: list[str]) -> int:
    """Run a shell, or the command, that knows the cluster."""
    tools = made.plane.directory / "bin"
    tools.mkdir()
    cases = "".join(f"{node.name}) pid={node.pid} ;;\n" for node in made.nodes)
    names = " ".join(node.name for node in made.nodes)
    here = Path(sys.executable).parent
    path = f"{here}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    (tools / "node").write_text(
        _NODE.format(cases=cases, names=names, path=path, source=chart.ROOT / "src")
    )
    (tools / "node").chmod(0o755)
    for name in ("kubectl", "helm"):
        (tools / name).symlink_to(binaries.program(name))
    environment = os.environ | {
        "PATH": f"{tools}:{path}",
        "KUBECONFIG": str(made.plane.kubeconfig),
        "API_SERVER": made.plane.node_url,
    }
    address = made.plane.get("service", "web")["spec"]["clusterIP"]
    if not command:
        more = _OF_TOWPATH if proxy == "towpath" else ""
        print(_HINTS.format(proxy=proxy, address=address, more=more), flush=True)
        command = [os.environ.get("SHELL") or "sh"]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
