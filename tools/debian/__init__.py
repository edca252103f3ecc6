# SPDX-License-Identifier: Apache-2.0
"""Debian's releases and archives, as the tools that try Towpath on them need them."""
