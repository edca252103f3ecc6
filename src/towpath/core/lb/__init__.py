# SPDX-License-Identifier: Apache-2.0
"""The load balancer's pure part: plans and their steps, states, Maglev, hashes."""
