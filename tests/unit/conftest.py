# SPDX-License-Identifier: Apache-2.0
"""How hypothesis runs."""

from __future__ import annotations

from hypothesis import settings

# No deadline: how long an example takes on a busy machine says nothing of the code.
settings.register_profile("towpath", deadline=None, print_blob=True)
settings.load_profile("towpath")
