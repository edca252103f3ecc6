# SPDX-License-Identifier: Apache-2.0
"""The load balancer's program: loaded over its maps, pinned, attached to devices."""
