# SPDX-License-Identifier: Apache-2.0
"""Checks backends, and has the datapath follow what they find.

`monitor` runs the checks and acts on them, `check` makes one, `registry` is what is known. What a
result means is `towpath.core.health`'s, the way through the tunnel
`towpath.datapath.health.path`'s.
"""
