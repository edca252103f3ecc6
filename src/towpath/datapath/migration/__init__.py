# SPDX-License-Identifier: Apache-2.0
"""From pinned tables of another layout to this version's, while packets use both."""
