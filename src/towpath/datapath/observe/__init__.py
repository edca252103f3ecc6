# SPDX-License-Identifier: Apache-2.0
"""What the load balancer has done and would do: counters, traces, verdicts in words."""
