# SPDX-License-Identifier: Apache-2.0
"""Next hops that the kernel keeps resolved for the datapath."""
