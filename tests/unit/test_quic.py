# SPDX-License-Identifier: Apache-2.0
"""Connection ids that servers make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath import quic
from towpath.model import Quic

KATRAN = Quic("katran")
quic_lb = st.builds(
    Quic,
    length=st.integers(1, 8),
    rotation=st.integers(0, 6),
    length_self_description=st.booleans(),
)


@given(quic_lb, st.data())
def test_ids_of_quic_lb(config: Quic, data: st.DataObject) -> None:
    """Three bits of configuration, a length or anything, the server's id, and what is random."""
    assert config.length is not None
    server_id = data.draw(st.integers(*config.allowed))
    size = data.draw(st.none() | st.integers(config.length + 5, 20))
    made = quic.make(server_id, config, size=size)
    assert len(made) == (size or config.length + 9)
    assert made[0] >> 5 == config.rotation
    if config.length_self_description:
        assert made[0] & 31 == len(made) - 1
    assert made[1 : 1 + config.length] == server_id.to_bytes(config.length, "big")
    assert quic.parse(made, config) == server_id
    assert made != quic.make(server_id, config, size=size)
    assert quic.parse(made[: config.length + 4], config) is None
    nobody = quic.make(None, config, size=size)
    assert (nobody[0] >> 5, nobody[0] & 31) == (7, len(nobody) - 1)
    assert quic.parse(nobody, config) is None


@given(st.sampled_from([1, 2, 3]), st.data())
def test_ids_of_katran(version: int, data: st.DataObject) -> None:
    """Two bits of version; in the first the id is right behind them."""
    bits = {1: 16, 2: 24, 3: 31}[version]
    server_id = data.draw(st.integers(1, (1 << bits) - 1))
    made = quic.make(server_id, KATRAN, version=version)
    assert (len(made), made[0] >> 6) == (8, version)
    number = int.from_bytes(made[:3] if version == 1 else made[1 : 2 + version], "big")
    assert (number >> 6 & 0xFFFF if version == 1 else number) == server_id
    assert quic.parse(made, KATRAN) == server_id
    assert quic.parse(made[:7], KATRAN) is None
    assert quic.parse(quic.make(None, KATRAN), KATRAN) is None


def test_known_ids() -> None:
    """As Katran's own tests have them."""
    for text, server_id in (
        ("4100030405060700", 1024),
        ("4100830405060700", 1026),
        ("8003040205060700", 0x030402),
        ("c000000001060700", 1),
        ("0003040205060700", None),
    ):
        assert quic.parse(bytes.fromhex(text), KATRAN) == server_id


@pytest.mark.parametrize(
    ("server_id", "config", "options", "message"),
    [
        (256, Quic(length=1), {}, "server id 256 does not fit; allowed: 0 to 255"),
        (-1, Quic(length=1), {}, "server id -1 does not fit; allowed: 0 to 255"),
        (0, KATRAN, {}, "server id 0 does not fit; allowed: 1 to 16777215"),
        (1 << 16, KATRAN, {"version": 1}, "server id 65536 does not fit; allowed: 1 to 65535"),
        (1 << 31, KATRAN, {}, "server id 2147483648 does not fit; allowed: 1 to 2147483647"),
        (1, KATRAN, {"version": 4}, "4 is no version of Katran's ids; allowed: 1 to 3"),
        (1, KATRAN, {"size": 7}, "7 bytes are no size; allowed: 8 to 20"),
        (1, Quic(length=2), {"size": 21}, "21 bytes are no size; allowed: 7 to 20"),
        (1, Quic(length=2), {"size": 6}, "6 bytes are no size; allowed: 7 to 20"),
    ],
)
def test_what_does_not_fit(
    server_id: int, config: Quic, options: dict[str, int], message: str
) -> None:
    """Is refused with what does."""
    with pytest.raises(quic.QuicIdError, match=f"^{message}$"):
        quic.make(server_id, config, **options)
