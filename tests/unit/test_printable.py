# SPDX-License-Identifier: Apache-2.0
"""Text that a terminal shows as it is."""

from __future__ import annotations

import pytest

from towpath.printable import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("what can be seen: ä, 語, \\x1b", "what can be seen: ä, 語, \\x1b"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m\x7f\x00", "\\x9b31m\\x7f\\x00"),
        ("left\u202etfel", "left\\u202etfel"),
        ("\udcff\r\n\t", "\\udcff\\r\\n\\t"),
        ("it's \x07", "it's \\x07"),
    ],
)
def test_what_can_not_be_seen_is_escaped(text: str, shown: str) -> None:
    """As Python does."""
    assert printable(text) == shown


def test_lines_stay_lines() -> None:
    """Of what has several."""
    assert printable_lines("a\x1b\n\nb\r") == "a\\x1b\n\nb\\r"
