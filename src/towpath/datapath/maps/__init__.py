# SPDX-License-Identifier: Apache-2.0
"""The load balancer's maps, apart from its programs: made, sized, pinned, adopted, shared."""
