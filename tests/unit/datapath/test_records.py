# SPDX-License-Identifier: Apache-2.0
"""Records of another version's layout become this one's."""

from __future__ import annotations

import numpy as np

from towpath.datapath.maps.records import converted


def test_room_that_is_left_is_no_content() -> None:
    """It may be several elements in one version and one in the next, also within a struct."""
    before = np.dtype([("hop", [("mtu", "u2"), ("_reserved", "u1", (2,))]), ("packets", "u8")])
    after = np.dtype(
        [("hop", [("mtu", "u2"), ("way", "u1"), ("_reserved", "u1")]), ("packets", "u8")]
    )
    rows = np.zeros(3, before)
    rows["hop"]["mtu"], rows["packets"] = 1500, (1, 2, 3)
    made = converted(rows, after)
    assert made["hop"]["mtu"].tolist() == [1500] * 3
    assert made["packets"].tolist() == [1, 2, 3]
    assert not made["hop"]["way"].any()
