# SPDX-License-Identifier: Apache-2.0
"""Annotations of bandwidth are taken, and refused, as containerd does."""

from __future__ import annotations

import pytest

from towpath.core.kubernetes.quantities import rate


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1.5M", 1_500_000),
        ("10Mi", 10 << 20),
        ("1e6", 1_000_000),
        ("1E3", 1000),
        ("1500000m", 1500),
        ("+10M", 10_000_000),
        (".5M", 500_000),
        ("5000.", 5000),
        ("001k", 1000),
        ("1k", 1000),
        ("1P", 10**15),
        ("1000.0000001", 1001),
        ("1000000000000n", 1000),
        ("1500000e-3", 1500),
    ],
)
def test_what_is_taken(text: str, bits: int) -> None:
    """As quantities of the API, rounded up."""
    assert rate(text) == bits


@pytest.mark.parametrize("text", ["500", "0", "-1M", "999.0", "1m", "1e-9", "1e-99999"])
def test_what_is_too_small(text: str) -> None:
    """Below 1k, as the runtime says it."""
    with pytest.raises(ValueError, match=r"unreasonably small \(< 1kbit\)"):
        rate(text)


@pytest.mark.parametrize("text", ["2P", "1E", "1000000000000001", "1e99999999999"])
def test_what_is_too_large(text: str) -> None:
    """Above 1P, without a number of so many digits being made."""
    with pytest.raises(ValueError, match=r"unreasonably large \(> 1Pbit\)"):
        rate(text)


@pytest.mark.parametrize(
    "text", ["", "abc", "k", ".", "1mi", "1K", "10 M", " 10M", "1e", "0x10", "1M/s", "٣M", "9" * 99]
)
def test_what_is_no_quantity(text: str) -> None:
    """It is told what one looks like."""
    with pytest.raises(ValueError, match="is no quantity; allowed: such as 10M"):
        rate(text)
