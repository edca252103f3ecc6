# SPDX-License-Identifier: Apache-2.0
"""The process that holds the lab's BPF programs while the lab is up.

Started by `Lab.up` in the router's namespace, ended when the lab goes down:

- on each backend, what ``towpath decap`` does there: unwrap what the balancer sends;
- on the router's end of the balancer's link, a program that passes everything. veth
  takes frames that the other end sent by XDP_TX only while it has one.
"""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack

from towpath.datapath.decap.decap import Decap
from towpath.kernel.bpf.fragments import taking_fragments
from towpath.kernel.bpf.links import attach_xdp
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns
from towpath.lab.topology import DEVICE, Link, Topology


def main() -> None:
    """Attach, say so on standard output, and hold on until told to stop."""
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    topology = Topology(int(sys.argv[1]))
    with ExitStack() as stack:
        _pass_on(stack, topology.balancer.port)
        for link in topology.backend_links:
            _unwrap(stack, link)
        print("ready", flush=True)  # noqa: T201  the lab waits for this line
        signal.sigwait(stops)


def _pass_on(stack: ExitStack, device: str) -> None:
    program = stack.enter_context(taking_fragments(BpfObject.packaged("lab_pass")))
    program.load()
    stack.enter_context(attach_xdp(program.programs["pass"], device_index(device), "native"))


def _unwrap(stack: ExitStack, link: Link) -> None:
    addresses = [interface.ip for interface in link.of_node]
    with in_netns(link.node):
        stack.enter_context(Decap(DEVICE, addresses))


if __name__ == "__main__":
    main()
