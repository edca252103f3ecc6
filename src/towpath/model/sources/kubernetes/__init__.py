# SPDX-License-Identifier: Apache-2.0
"""A cluster whose Services are balanced."""

from towpath.model.sources.kubernetes.section import Section, check_beside

__all__ = ["Section", "check_beside"]
