# SPDX-License-Identifier: Apache-2.0
"""Source NAT: addresses, ports and times, as the program is told of them."""
