# SPDX-License-Identifier: Apache-2.0
"""Configurations of other load balancers as services: text in, services and notes out."""
