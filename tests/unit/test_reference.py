# SPDX-License-Identifier: Apache-2.0
"""The Python reference says what the docstrings say, of everything that is public."""

from __future__ import annotations

from tools.reference import PAGE, page

import towpath
from towpath import errors


def test_the_page_is_what_is_generated() -> None:
    """Write it with ``python -m tools.reference --write``."""
    assert PAGE.read_text() == page()


def test_every_public_class_is_described() -> None:
    """Those of the package, and its errors that have nothing to do with a lab or a bench."""
    text = page()
    elsewhere = {"AgentError", "BenchError", "DecapError", "ExpressionError", "FieldError"}
    names = (
        {*towpath.__all__, *errors.__all__} - elsewhere - {"LabError", "Protocol", "__version__"}
    )
    assert sorted(name for name in names if f"\n### {name}\n" not in text) == []
