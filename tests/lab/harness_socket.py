# SPDX-License-Identifier: Apache-2.0
"""A cgroup whose processes see services, with nginx on every backend, and name servers."""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import BACKENDS, BACKENDS6, LIMITS, VIP, VIP6, service

from towpath.datapath.lb.contents import Contents
from towpath.datapath.maps.shared import SharedMaps
from towpath.datapath.socket.balancer import SocketBalancer
from towpath.kernel.net.netns import new_netns
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.model.service import Service

SECONDS = 60
WEB, DNS = 80, 5353
WEB_SERVICES = (service(port=WEB), service(VIP6, BACKENDS6[:3], port=WEB))


class Lab:
    """A cgroup whose processes see services, and nginx on every backend."""

    def __init__(self, cgroup: Path, sockets: SocketBalancer) -> None:
        self.cgroup = cgroup
        self.sockets = sockets

    def apply(self, *services: Service) -> None:
        """Have these services and no others; sockets of backends that have gone are ended."""
        self.sockets.changed(self.sockets.contents.apply(services))
        self.sockets.end_stale()

    def run(self, *command: str, text: str = "", check: bool = True) -> str:
        """Run a command in the cgroup; what it prints."""
        ran = subprocess.run(
            ["sh", "-c", self._moved, "sh", *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert ran.returncode == 0 or not check, ran.stderr
        return ran.stdout

    @contextmanager
    def running(self, *command: str) -> Iterator[None]:
        """Have a command run in the cgroup during the block."""
        process = subprocess.Popen(["sh", "-c", self._moved, "sh", *command])
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    @property
    def _moved(self) -> str:
        return f'echo $$ > {self.cgroup}/cgroup.procs && exec "$@"'

    @property
    def balanced(self) -> int:
        """Connections that went to backends."""
        return self.sockets.counters().verdicts["connect"]["balanced"]


NGINX = """
worker_processes 1; daemon off; pid {directory}/pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{ listen 80; listen [::]:80; location / {{ return 200 "$server_addr"; }} }}
  server {{ listen 8081; location / {{ proxy_pass http://{vip}; }} }}
}}
"""


@contextmanager
def web_lab(directory: Path) -> Iterator[Lab]:
    """Backends with nginx, a service of TCP over each family."""
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory, vip=VIP))
    lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS)]
    lines += [f"addr add {each}/128 dev lo nodad" for each in BACKENDS6]
    tables = SharedMaps(LIMITS)
    contents = Contents(tables)
    contents.apply(WEB_SERVICES)
    with new_netns(), new_cgroup() as cgroup:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        with SocketBalancer(tables, contents, cgroup) as sockets:
            made = Lab(cgroup, sockets)
            with made.running("nginx", "-c", f"{directory}/nginx.conf", "-p", str(directory)):
                wait_until(lambda: _serves(made), seconds=SECONDS, what="nginx to serve")
                yield made
    tables.close()


def _serves(lab: Lab) -> bool:
    return lab.run("curl", "-s", f"http://{BACKENDS[0]}/", check=False) == BACKENDS[0]


class Names(threading.Thread):
    """Answers all questions for addresses with one, until it is stopped."""

    def __init__(self, address: str, answer: str) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, DNS))
        self._answer = socket.inet_aton(answer)
        self.silent = False
        """As a host that has gone: no answer, and no error either."""
        self.start()

    def run(self) -> None:
        """Answer (RFC 1035): the question again, and a record for it."""
        while True:
            question, client = self._socket.recvfrom(512)
            if not question:
                return
            if self.silent:
                continue
            head = question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
            asked = question[12 : question.index(b"\0", 12) + 5]
            record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + self._answer
            self._socket.sendto(head + asked + record, client)

    def stop(self) -> None:
        """End it, and its socket."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.sendto(b"", self._socket.getsockname())
        self.join()
        self._socket.close()
