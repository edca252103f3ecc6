# SPDX-License-Identifier: Apache-2.0
"""Text from elsewhere, as terminals and logs may have it.

What a check's command prints, a name in a request or a device's name can hold escape sequences,
which make a terminal show something else, and line breaks, which make a log say it.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return text whose characters that can't be seen are escaped, line breaks too.

    As in a Python string: ``\x1b[31m``, ``\n``, ``\u202e``. Other text is returned as it is.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def printable_lines(text: str) -> str:
    """Return the same of text that has several lines."""
    return "\n".join(map(printable, text.split("\n")))
