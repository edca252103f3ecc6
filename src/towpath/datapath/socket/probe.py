# SPDX-License-Identifier: Apache-2.0
"""A process that connects once it is told to, and tells where to: for `trace.live`.

Run as a module, with address, port and protocol. It then has its socket until it is killed.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys

_SO_COOKIE = 57
_SECONDS = 10
"""For a connection."""


def connect(address: str, port: int, protocol: str) -> tuple[socket.socket, dict[str, object]]:
    """Return the socket, and what there is to say of it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
    made.settimeout(_SECONDS)
    # Closed it is reset: nothing waits on either side.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        made.connect((address, port))
        peer = made.getpeername()[:2]
    except OSError as error:
        return made, {"error": errno.errorcode.get(error.errno or 0, str(error))}
    cookie = struct.unpack("=Q", made.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]
    return made, {"peer": peer, "cookie": cookie}


def main(address: str, port: str, protocol: str) -> None:
    """Wait for a line, connect, say so, and wait for the end."""
    sys.stdin.readline()
    made, said = connect(address, int(port), protocol)
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()
    made.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
