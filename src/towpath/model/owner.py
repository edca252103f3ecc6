# SPDX-License-Identifier: Apache-2.0
"""Where a service comes from."""

import enum


class Owner(enum.StrEnum):
    """Where a service comes from, which is the only place it can be changed."""

    FILE = "file"
    API = "api"
