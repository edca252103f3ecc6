# SPDX-License-Identifier: Apache-2.0
"""The load balancer's tables: services, backends, Maglev slots, and how they are changed."""
