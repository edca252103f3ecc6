# SPDX-License-Identifier: Apache-2.0
"""A real web server on each backend: nginx, configured and kept below the lab's directory.

``/`` answers the backend's name in the body and in an X-Backend header. ``/large``
is a file of LARGE_SIZE bytes, another one on every backend, sent at LARGE_RATE, so
that a download lasts a while and cannot be continued by another backend unnoticed.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

from towpath.lab import namespaces
from towpath.lab.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

LARGE_SIZE = 6 << 20
LARGE_RATE = 2 << 20

CONFIG = """\
# Written by `towpath lab`; gone with it.
user nobody nogroup;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format lab '$remote_addr $remote_port $server_addr "$request" $status';
    access_log {directory}/access.log lab;
    client_body_temp_path {directory}/temp;
    proxy_temp_path {directory}/temp;
    fastcgi_temp_path {directory}/temp;
    uwsgi_temp_path {directory}/temp;
    scgi_temp_path {directory}/temp;
    default_type text/plain;
    server {{
        listen 80 backlog=1024;
        listen [::]:80 ipv6only=on backlog=1024;
        add_header X-Backend {name} always;
        location = / {{ return 200 "{name}"; }}
        location = /large {{ root {directory}; limit_rate {rate}; }}
    }}
}}
"""


def start(name: str, namespace: str, directory: Path) -> None:
    """Start nginx as backend name; it accepts connections when this returns.

    Raises LabError with nginx's own words if it does not start.
    """
    directory.mkdir(parents=True)
    (directory / "large").write_bytes(large_file(name))
    config = directory / "nginx.conf"
    config.write_text(CONFIG.format(directory=directory, name=name, rate=LARGE_RATE))
    # nginx goes into the background only once it listens.
    started = namespaces.run(
        namespace,
        [_nginx(), "-e", str(directory / "error.log"), "-p", str(directory), "-c", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if started.returncode != 0:
        raise LabError(f"nginx did not start on {name}: {started.stderr.strip()}")


def large_file(name: str) -> bytes:
    """The bytes of ``/large`` on a backend; the same each time, no two backends alike."""
    return random.Random(name).randbytes(LARGE_SIZE)  # noqa: S311  a test pattern


def large_checksum(name: str) -> str:
    """SHA-256 of ``/large`` on a backend, in hexadecimal."""
    return hashlib.sha256(large_file(name)).hexdigest()


def _nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    if found is None:
        raise LabError("nginx is not installed; the lab's backends need it: apt install nginx")
    return found
