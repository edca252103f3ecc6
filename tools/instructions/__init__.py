# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions that the load balancer takes for a packet, and holds them to budgets."""
