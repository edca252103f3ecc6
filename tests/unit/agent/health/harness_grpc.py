# SPDX-License-Identifier: Apache-2.0
"""Servers of gRPC, by grpcio: run as a module, with the files of a key and a certificate for TLS.

Prints their ports, and ends with its input. In a process of its own, since the library has threads.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVES, SERVES_NOT, WITHOUT = "example.v1.Shop", "example.v1.Till", "without"


@contextmanager
def running(*files: Path) -> Iterator[dict[str, int]]:
    """Ports of two servers: one with the health service, one without."""
    command = [sys.executable, "-m", __name__, *map(str, files)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        first, second = map(int, process.stdout.readline().split())
        yield {SERVES: first, WITHOUT: second}


def main(*files: str) -> None:
    """Serve."""

    def started(server: grpc.Server) -> int:
        if files:
            key, certificate = (Path(each).read_bytes() for each in files)
            credentials = grpc.ssl_server_credentials([(key, certificate)])
            port: int = server.add_secure_port("127.0.0.1:0", credentials)
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return port

    told = health.HealthServicer()
    told.set(SERVES, health_pb2.HealthCheckResponse.SERVING)
    told.set(SERVES_NOT, health_pb2.HealthCheckResponse.NOT_SERVING)
    servers = [grpc.server(ThreadPoolExecutor(2)) for _ in range(2)]
    health_pb2_grpc.add_HealthServicer_to_server(told, servers[0])
    sys.stdout.write(" ".join(str(started(each)) for each in servers) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    for server in servers:
        server.stop(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
