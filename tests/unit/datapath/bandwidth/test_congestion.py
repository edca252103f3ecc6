# SPDX-License-Identifier: Apache-2.0
"""What namespaces may use is what it was before, and what others have allowed since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from towpath.datapath.bandwidth.congestion import CUBIC, CongestionControl
from towpath.kernel.bpf.notes import Notes
from towpath.kernel.net import sysctl

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("before", "since", "after"),
    [
        ("reno", "reno cubic", "reno"),
        ("reno", "reno cubic dctcp", "reno dctcp"),
        ("reno cubic", "reno cubic", "reno cubic"),
    ],
)
def test_what_others_have_allowed_stays(
    before: str, since: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they have forbidden isn't allowed again."""
    monkeypatch.setattr(sysctl, "_ROOT", tmp_path)
    allowed = tmp_path / "ipv4" / "tcp_allowed_congestion_control"
    allowed.parent.mkdir()
    allowed.write_text(f"{before}\n")
    control = CongestionControl(Notes(None))
    assert control.keep([], CUBIC) == []
    assert CUBIC in allowed.read_text().split()
    allowed.write_text(f"{since}\n")
    assert control.keep([], None) == []
    assert allowed.read_text().split() == after.split()
    assert not control.noted
