# SPDX-License-Identifier: Apache-2.0
"""Connection ids for servers of QUIC, by which a load balancer knows whose a connection is.

A server makes its ids with what the service's ``quic`` and its own ``server_id`` say:

    from towpath import quic

    config = quic.Quic(length=2)
    connection_id = quic.make(17, config)

Each id has a part that is random. Whoever sees ids sees which server they name, and that two ids
are of one server: they aren't encrypted.
"""

from __future__ import annotations

import secrets

from towpath.errors import Error
from towpath.model.quic import MAX_ROTATION, Quic

__all__ = ["MAX_SIZE", "Quic", "QuicIdError", "make", "parse"]

MAX_SIZE = 20
"""Bytes of a connection id, in versions 1 and 2 of QUIC."""
_NONCE = 4
_DEFAULT_NONCE = 8
_KATRAN_SIZE = 8
_KATRAN_BYTES = {1: 2, 2: 3, 3: 4}


class QuicIdError(Error, ValueError):
    """An id can't be made: what is wrong, and what is allowed."""


def make(
    server_id: int | None, config: Quic, *, size: int | None = None, version: int | None = None
) -> bytes:
    """Return a new connection id that names a server.

    Args:
        server_id: The backend's ``server_id``. None: an id that names nobody, as a server makes
            that has not been told its own yet (QUIC-LB's configuration 7).
        config: The service's ``quic``.
        size: Bytes of the id. By default it has 8 random ones; Katran's are 8 bytes.
        version: Of Katran's ids, 1 to 3. By default 2, or 3 if the id doesn't fit.

    QuicIdError: the server's id doesn't fit, or the size.
    """
    if config.server_ids == "katran":
        return _make_katran(server_id, size or _KATRAN_SIZE, version)
    return _make_quic_lb(server_id, config, size)


def parse(connection_id: bytes, config: Quic) -> int | None:
    """Return the id of the server that a connection id names, None if it can name none."""
    if config.server_ids == "katran":
        return _parse_katran(connection_id)
    length = config.length or 0
    if len(connection_id) < 1 + length + _NONCE or connection_id[0] >> 5 != config.rotation:
        return None
    if config.length_self_description and connection_id[0] & 0x1F != len(connection_id) - 1:
        return None
    return int.from_bytes(connection_id[1 : 1 + length], "big")


def _make_quic_lb(server_id: int | None, config: Quic, size: int | None) -> bytes:
    length = config.length or 0
    size = size or 1 + length + _DEFAULT_NONCE
    _check_size(size, 1 + length + _NONCE)
    if server_id is None:
        # Such ids tell their length in any case.
        return bytes([MAX_ROTATION + 1 << 5 | size - 1]) + secrets.token_bytes(size - 1)
    _check_id(server_id, 0, (1 << 8 * length) - 1)
    told = size - 1 if config.length_self_description else secrets.randbits(5)
    nonce = secrets.token_bytes(size - 1 - length)
    return bytes([config.rotation << 5 | told]) + server_id.to_bytes(length, "big") + nonce


def _make_katran(server_id: int | None, size: int, version: int | None) -> bytes:
    _check_size(size, _KATRAN_SIZE)
    if server_id is None:
        return bytes([secrets.randbits(6)]) + secrets.token_bytes(size - 1)
    if version is None:
        version = 2 if server_id < 1 << 24 else 3
    if version not in _KATRAN_BYTES:
        raise QuicIdError(f"{version} is no version of Katran's ids; allowed: 1 to 3")
    bits = 8 * _KATRAN_BYTES[version]
    _check_id(server_id, 1, (1 << min(bits, 31)) - 1)
    # The id is behind the version in version 1, behind the first byte in the others.
    behind = 2 if version == 1 else 8
    number = secrets.randbits(8 * size - 2)
    shift = 8 * size - behind - bits
    number &= ~((1 << bits) - 1 << shift)
    number |= version << 8 * size - 2 | server_id << shift
    return number.to_bytes(size, "big")


def _parse_katran(connection_id: bytes) -> int | None:
    if len(connection_id) < _KATRAN_SIZE or not connection_id[0] >> 6:
        return None
    version, number = connection_id[0] >> 6, int.from_bytes(connection_id[:8], "big")
    if version == 1:
        return number >> 46 & 0xFFFF or None
    return int.from_bytes(connection_id[1 : 1 + _KATRAN_BYTES[version]], "big") or None


def _check_size(size: int, least: int) -> None:
    if not least <= size <= MAX_SIZE:
        raise QuicIdError(f"{size} bytes are no size; allowed: {least} to {MAX_SIZE}")


def _check_id(server_id: int, least: int, most: int) -> None:
    if not least <= server_id <= most:
        raise QuicIdError(f"server id {server_id} does not fit; allowed: {least} to {most}")
