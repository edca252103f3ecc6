# SPDX-License-Identifier: Apache-2.0
"""Real programs, which know nothing of it, at services: by connect(), sendto() and io_uring."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_socket import DNS, WEB_SERVICES, Lab, web_lab
from tests.listed import needs_lists
from tests.prog.socket.harness import BACKENDS, BACKENDS6, OTHER_VIP, VIP, VIP6, Servers, service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Backends with nginx."""
    with web_lab(tmp_path_factory.mktemp("nginx")) as made:
        yield made


@pytest.mark.parametrize(("host", "backends"), [(VIP, BACKENDS), (f"[{VIP6}]", BACKENDS6)])
def test_curl(lab: Lab, host: str, backends: tuple[str, ...]) -> None:
    """It says that it is connected to the service."""
    before = lab.balanced
    told = lab.run("curl", "-s", "-w", "\n%{remote_ip}", f"http://{host}/").split("\n")
    assert told[0] in backends[:3]
    assert told[1] == host.strip("[]")
    assert lab.balanced == before + 1


def test_nginx_as_a_proxy(lab: Lab) -> None:
    """It connects without waiting, and asks for the outcome by an option."""
    before = lab.balanced
    assert lab.run("curl", "-s", f"http://{BACKENDS[0]}:8081/") in BACKENDS[:3]
    assert lab.balanced == before + 1


ASYNCIO = """
import asyncio, sys
async def one():
    reader, writer = await asyncio.open_connection(sys.argv[1], 80)
    assert writer.get_extra_info("peername")[:2] == (sys.argv[1], 80)
    writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    data = await reader.read()
    writer.close()
    return data.rsplit(b"\\n", 1)[1].decode()
async def main():
    print(*sorted(set(await asyncio.gather(*(one() for _ in range(50))))))
asyncio.run(main())
"""


def test_asyncio(lab: Lab) -> None:
    """Many at once."""
    told = lab.run(sys.executable, "-c", ASYNCIO, VIP).split()
    assert told == sorted(BACKENDS[:3])


NODE = """
require("http").get("http://%s/", (answer) => {
  answer.on("data", (data) => console.log(String(data), answer.socket.remoteAddress));
});
"""


def test_node(lab: Lab) -> None:
    """By libuv."""
    backend, remote = lab.run("node", "-e", NODE % VIP).split()
    assert backend in BACKENDS[:3]
    assert remote == VIP


def test_nc(lab: Lab) -> None:
    """As people try it."""
    told = lab.run("nc", "-w", "5", VIP, "80", text="GET / HTTP/1.0\r\n\r\n")
    assert told.rsplit("\n", 1)[1] in BACKENDS[:3]


MPTCP = """
import socket, sys
made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
made.settimeout(30)
made.connect((sys.argv[1], 80))
made.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
data = b""
while some := made.recv(4096):
    data += some
print(data.rsplit(b"\\n", 1)[1].decode())
"""


def test_mptcp(lab: Lab) -> None:
    """It falls back to TCP with a server that doesn't speak it."""
    told = lab.run(sys.executable, "-c", MPTCP, VIP).split()
    assert told[0] in BACKENDS[:3]


def test_mptcpize(lab: Lab) -> None:
    """A program that doesn't know that its sockets are MPTCP's."""
    before = lab.balanced
    told = lab.run("mptcpize", "run", "curl", "-s", "-w", "\n%{remote_ip}", f"http://{VIP}/")
    backend, remote = told.split("\n")
    assert backend in BACKENDS[:3]
    assert remote == VIP
    assert lab.balanced == before + 1


IPERF = 5201


@needs_lists
def test_iperf3(lab: Lab) -> None:
    """Connections of TCP, and UDP beside one of TCP: both have to come to one server."""
    both = (service(OTHER_VIP, BACKENDS[:1], port=IPERF, protocol=each) for each in ("tcp", "udp"))
    lab.apply(*WEB_SERVICES, *both)
    command = ["iperf3", "-s", "-B", BACKENDS[0], "-p", str(IPERF), "--forceflush"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for more in (
                ["-P", "4", "-n", "4M"],
                ["-R", "-n", "4M"],
                ["-u", "-b", "8M", "-n", "1M"],
            ):
                # It says so before each: until then it is busy with the one before.
                while "Server listening" not in server.stdout.readline():
                    assert server.poll() is None
                told = lab.run("iperf3", "-c", OTHER_VIP, "-p", str(IPERF), "-J", *more)
                found = json.loads(told)
                assert "error" not in found
                assert {each["remote_host"] for each in found["start"]["connected"]} == {OTHER_VIP}
                assert found["end"]["streams"]
        finally:
            server.terminate()
    lab.apply(*WEB_SERVICES)


URING = r"""
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct io_uring_params p = {};
	int ring = syscall(__NR_io_uring_setup, 1, &p);
	if (ring < 0)
		return 77;
	size_t size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	size_t done = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	char *sq = mmap(0, size > done ? size : done, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *sqe = mmap(0, p.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	int datagram = atoi(argv[2]);
	struct sockaddr_in to = { .sin_family = AF_INET };
	int fd = socket(AF_INET, datagram ? SOCK_DGRAM : SOCK_STREAM, 0);
	struct iovec text = { "?", 1 };
	struct msghdr message = { &to, sizeof(to), &text, 1 };

	to.sin_port = htons(datagram ? datagram : 80);
	inet_pton(AF_INET, argv[1], &to.sin_addr);
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = datagram ? IORING_OP_SENDMSG : IORING_OP_CONNECT;
	sqe->fd = fd;
	sqe->addr = (unsigned long)(datagram ? (void *)&message : &to);
	sqe->off = datagram ? 0 : sizeof(to);
	sqe->len = !!datagram;
	*(unsigned *)(sq + p.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return 1;
	struct io_uring_cqe *cqe = (void *)(sq + p.cq_off.cqes);
	if (cqe->res != !!datagram)
		return fprintf(stderr, "%d\n", cqe->res), 1;

	struct sockaddr_in peer;
	socklen_t length = sizeof(peer);
	char data[4096] = "", name[64];
	if (datagram) {
		recvfrom(fd, data, sizeof(data) - 1, 0, (void *)&peer, &length);
		printf("%s %s\n", data, inet_ntop(AF_INET, &peer.sin_addr, name, 64));
		return 0;
	}
	getpeername(fd, (void *)&peer, &length);
	write(fd, "GET / HTTP/1.0\r\n\r\n", 18);
	for (size_t at = 0, got; (got = read(fd, data + at, sizeof(data) - at - 1)) > 0; at += got)
		;
	printf("%s %s\n", strrchr(data, '\n') + 1, inet_ntop(AF_INET, &peer.sin_addr, name, 64));
	return 0;
}
"""


@needs_lists
def test_io_uring(lab: Lab, tmp_path: Path) -> None:
    """IORING_OP_CONNECT and IORING_OP_SENDMSG come by the same hooks."""
    (tmp_path / "uring.c").write_text(URING)
    built = ["clang", "-O1", "-w", "-o", str(tmp_path / "uring"), str(tmp_path / "uring.c")]
    subprocess.run(built, check=True)
    told = lab.run(str(tmp_path / "uring"), VIP, "0", check=False).split()
    if not told:
        pytest.skip("io_uring is switched off here")
    assert told[0] in BACKENDS[:3]
    assert told[1] == VIP
    lab.apply(*WEB_SERVICES, service(OTHER_VIP, BACKENDS[:1], port=DNS, protocol="udp"))
    with Servers(BACKENDS[:1], [DNS]):
        told = lab.run(str(tmp_path / "uring"), OTHER_VIP, str(DNS)).split()
    assert told == [BACKENDS[0], OTHER_VIP]
    lab.apply(*WEB_SERVICES)
