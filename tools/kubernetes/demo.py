# SPDX-License-Identifier: Apache-2.0
"""A real cluster of two nodes with Towpath on it, to look at; nothing of it is left.

    python -m tools.kubernetes.demo                      then a shell, with kubectl and `node`
    python -m tools.kubernetes.demo --proxy kube-proxy   or served by kube-proxy, or by `none`
    python -m tools.kubernetes.demo -- COMMAND...        COMMAND in place of a shell

Needs root. Go builds Kubernetes the first time, which takes some 10 minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import yaml
from tools.kubernetes import binaries, chart, cluster, image
from tools.kubernetes.__main__ import build
from tools.kubernetes.cluster import is_ready, server_pod
from tools.kubernetes.errors import KubernetesError

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
  kubectl exec client -- curl -s http://web-address:80   # web-address: {address}
  node one towpath service list
  node one towpath status
  kubectl scale deployment web --replicas=6
"""


def main() -> int:
    """Go into namespaces of its own, and do what the command line says there."""
    if _INSIDE not in sys.argv[1:2]:
        if os.geteuid():
            print("needs root: it makes nodes", file=sys.stderr)
            return 1
        try:
            build()
            image.kept_image()
        except KubernetesError as error:
            print(error, file=sys.stderr)
            return 1
        words = [sys.executable, "-m", "tools.kubernetes.demo", _INSIDE, *sys.argv[1:]]
        return subprocess.run(["unshare", *_ALONE, *words], check=False).returncode
    parser = argparse.ArgumentParser(prog="python -m tools.kubernetes.demo")
    parser.add_argument("--proxy", choices=("towpath", "kube-proxy", "none"), default="towpath")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="in place of a shell")
    options = parser.parse_args(sys.argv[2:])
    for kind, at in (("tmpfs", "/run"), ("bpf", "/sys/fs/bpf")):
        subprocess.run(["mount", "-t", kind, "none", at], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with cluster.cluster() as made:
        serve(made, options.proxy)
        make_workload(made)
        return look(made, options.proxy, options.command)


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
        print(_HINTS.format(proxy=proxy, address=address), flush=True)
        command = [os.environ.get("SHELL") or "sh"]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
