# SPDX-License-Identifier: Apache-2.0
"""Next hops that are to be resolved: what is to be done for them, as plain data."""
