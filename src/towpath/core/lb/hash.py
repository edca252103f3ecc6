# SPDX-License-Identifier: Apache-2.0
"""The hashes of ``bpf/net/hash.h`` and ``bpf/lb/service.h``: where the program looks.

Words are the little-endian values of bytes in network order, as the program
reads them from memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

MULTIPLIER = 0x9FB21C651E98DF25
_MASK = (1 << 64) - 1
_FAMILIES = {False: 2, True: 10}
"""``enum family``."""


def step(state: int, word: int) -> int:
    """Fold 64 bits into the state."""
    state = (state ^ word) * MULTIPLIER & _MASK
    return state ^ state >> 32


def _word(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def hash_vip(key: bytes, *, is_v6: bool) -> int:
    """Return the 64-bit hash of the 20 bytes of a ``struct vip_key``."""
    state = step(0, _word(key[12:20]))
    if is_v6:
        state = step(step(state, _word(key[:8])), _word(key[8:12]))
    return state


def hash_flow(key: bytes, seed: int, *, is_v6: bool) -> int:
    """Return the 64-bit hash of the 40 bytes of a ``struct flow_key``.

    The high half chooses the Maglev slot, see :func:`scale`.
    """
    if is_v6:
        state = seed
        for at in range(0, 32, 8):
            state = step(state, _word(key[at : at + 8]))
    else:
        state = step(seed, _word(key[12:16]) | _word(key[28:32]) << 32)
    return step(step(state, _word(key[32:40])), 0)


def hash_client(address: bytes, seed: int, *, is_v6: bool) -> int:
    """Return the 64-bit hash of a client, by the 16 bytes of its ``struct address``.

    For services with affinity its high half chooses the Maglev slot, see :func:`scale`.
    """
    if is_v6:
        state = step(step(seed, _word(address[:8])), _word(address[8:]))
    else:
        state = step(seed, _word(address[12:]))
    return step(step(state, _FAMILIES[is_v6]), 0)


def hash_clients(addresses: NDArray[np.uint8], seed: int, *, is_v6: bool) -> NDArray[np.uint64]:
    """Return the 64-bit hash of each client; ``addresses`` has shape (n, 16), of one family."""
    words = np.ascontiguousarray(addresses).reshape(-1, 16).view("<u8").astype(np.uint64)
    state = np.full(len(words), seed, np.uint64)
    if is_v6:
        state = step_all(step_all(state, words[:, 0]), words[:, 1])
    else:
        state = step_all(state, words[:, 1] >> np.uint64(32))
    state = step_all(state, np.full(len(words), _FAMILIES[is_v6], np.uint64))
    return step_all(state, np.zeros(len(words), np.uint64))


def hash_flows(keys: NDArray[Any], seed: int, *, is_v6: bool) -> NDArray[np.uint64]:
    """Return the 64-bit hash of each ``struct flow_key`` in ``keys``.

    ``keys`` is a contiguous array of records of 40 bytes, or of shape (n, 40) and
    bytes; all of one family.
    """
    words = keys.view(np.uint8).reshape(-1, 40).view("<u8").astype(np.uint64)
    state = np.full(len(words), seed, np.uint64)
    if is_v6:
        for half in range(4):
            state = step_all(state, words[:, half])
    else:
        high = np.uint64(0xFFFFFFFF00000000)
        state = step_all(state, words[:, 1] >> np.uint64(32) | words[:, 3] & high)
    return step_all(step_all(state, words[:, 4]), np.zeros(len(words), np.uint64))


def step_all(state: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Fold 64 bits into each of many states."""
    state = (state ^ word) * np.uint64(MULTIPLIER)
    return state ^ state >> np.uint64(32)


def scale(hash32: int, n: int) -> int:
    """Map 32 bits to [0, n) as the program does (Lemire, arXiv:1805.10941)."""
    return hash32 * n >> 32
