# SPDX-License-Identifier: Apache-2.0
"""Programs' places in the kernel, whatever hook they are at."""
