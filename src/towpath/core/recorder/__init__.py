# SPDX-License-Identifier: Apache-2.0
"""The recorder's pure part: filters as programs, captures as pcapng."""
