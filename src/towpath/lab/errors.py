# SPDX-License-Identifier: Apache-2.0
"""What the lab reports to the person who runs it."""

from __future__ import annotations

from towpath.errors import Error


class LabError(Error):
    """The lab cannot do what was asked; the message says what and what to do."""
