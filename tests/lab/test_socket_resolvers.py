# SPDX-License-Identifier: Apache-2.0
"""Real clients of name servers at services; most keep one socket for as long as they live."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_socket import DNS, SECONDS, WEB_SERVICES, Lab, Names, web_lab
from tests.listed import needs_lists
from tests.prog.socket.harness import BACKENDS, OTHER_VIP, service

from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from towpath.model.service import Service


pytestmark = needs_lists


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Backends with nginx."""
    with web_lab(tmp_path_factory.mktemp("nginx")) as made:
        yield made


@pytest.fixture
def servers(lab: Lab) -> Iterator[list[Names]]:
    """Two name servers, each with another answer, and the first one is the service's backend."""
    made = [Names(each, each) for each in BACKENDS[:2]]
    lab.apply(*WEB_SERVICES, _names(BACKENDS[0]))
    yield made
    for each in made:
        each.stop()
    lab.apply(*WEB_SERVICES)


def _names(backend: str) -> Service:
    return service(OTHER_VIP, [backend], port=DNS, protocol="udp")


def moves(lab: Lab, servers: list[Names], told: Callable[[], str]) -> None:
    """Whoever tells what it has been answered is answered by another one after the first's loss."""
    wait_until(lambda: told() == BACKENDS[0], seconds=SECONDS, what="the first")
    servers[0].silent = True
    lab.apply(*WEB_SERVICES, _names(BACKENDS[1]))
    wait_until(lambda: told() == BACKENDS[1], seconds=SECONDS, what="the second")


def dig(lab: Lab, address: str, port: int, seconds: int = 2) -> str:
    """What a name server answers; nothing: it doesn't."""
    ask = ["dig", "+short", "+tries=1", f"+timeout={seconds}", f"@{address}", "-p", str(port)]
    return lab.run(*ask, "name.test", check=False).strip()


def fetched(lab: Lab, port: int) -> str:
    """Which web server is found by the name that a proxy has for it."""
    return lab.run("curl", "-s", f"http://127.0.0.1:{port}/", check=False)


def test_dig(lab: Lab, servers: list[Names]) -> None:
    """It connects its socket, and takes no answer from anybody else."""
    assert servers
    assert dig(lab, OTHER_VIP, DNS) == BACKENDS[0]


NGINX = """
worker_processes 1; daemon off; pid {directory}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  resolver {vip}:{port} valid=1s ipv6=off;
  resolver_timeout 3s;
  server {{ listen 127.0.0.1:8082; location / {{ set $who name.test; proxy_pass http://$who; }} }}
}}
"""


def test_nginx_resolver_survives_the_loss_of_its_backend(
    lab: Lab, servers: list[Names], tmp_path: Path
) -> None:
    """It has one connected socket of UDP for as long as it lives."""
    (tmp_path / "nginx.conf").write_text(NGINX.format(directory=tmp_path, vip=OTHER_VIP, port=DNS))
    with lab.running("nginx", "-c", f"{tmp_path}/nginx.conf", "-p", str(tmp_path)):
        moves(lab, servers, lambda: fetched(lab, 8082))


HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
resolvers service
  nameserver one {vip}:{port}
  timeout resolve 1s
  timeout retry 1s
  hold valid 1s
frontend here
  bind 127.0.0.1:8083
  default_backend there
backend there
  server one name.test:80 resolvers service resolve-prefer ipv4 init-addr none
"""


def test_haproxy_resolver_survives_the_loss_of_its_backend(
    lab: Lab, servers: list[Names], tmp_path: Path
) -> None:
    """One connected socket too: it asks every second, whether or not anybody asks it."""
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(vip=OTHER_VIP, port=DNS))
    with lab.running("haproxy", "-db", "-q", "-f", f"{tmp_path}/haproxy.cfg"):
        moves(lab, servers, lambda: fetched(lab, 8083))


FORWARDER, UNBOUND_PORT = 5300, 5301


def test_dnsmasq_survives_the_loss_of_its_backend(lab: Lab, servers: list[Names]) -> None:
    """A forwarder with one socket, not connected: it takes answers from the service alone."""
    with lab.running(
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root"),
        *("--no-resolv", "--no-hosts", "--cache-size=0", "--bind-interfaces"),
        *("--listen-address=127.0.0.1", f"--port={FORWARDER}", "--query-port=5400"),
        f"--server={OTHER_VIP}#{DNS}",
    ):
        moves(lab, servers, lambda: dig(lab, "127.0.0.1", FORWARDER))


UNBOUND = """
server:
  do-daemonize: no
  chroot: ""
  username: ""
  directory: ""
  pidfile: ""
  use-syslog: no
  interface: 127.0.0.1
  port: {forwarder}
  num-threads: 1
  module-config: "iterator"
  local-zone: "test." nodefault
  cache-max-ttl: 0
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: {vip}@{port}
"""


def test_unbound_survives_the_loss_of_its_backend(
    lab: Lab, servers: list[Names], tmp_path: Path
) -> None:
    """A forwarder with a connected socket for each question, one of which is under way."""
    conf = UNBOUND.format(forwarder=UNBOUND_PORT, vip=OTHER_VIP, port=DNS)
    (tmp_path / "unbound.conf").write_text(conf)

    def told(seconds: int = 2) -> str:
        return dig(lab, "127.0.0.1", UNBOUND_PORT, seconds)

    with lab.running("unbound", "-d", "-c", f"{tmp_path}/unbound.conf"), ThreadPoolExecutor() as go:
        wait_until(lambda: told() == BACKENDS[0], seconds=SECONDS, what="the first")
        servers[0].silent = True
        asked = go.submit(told, SECONDS // 2)
        wait_until(lambda: bool(len(lab.sockets.listing().read("udp"))), seconds=SECONDS, what="it")
        lab.apply(*WEB_SERVICES, _names(BACKENDS[1]))
        assert asked.result() == BACKENDS[1]
