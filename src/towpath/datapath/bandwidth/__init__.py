# SPDX-License-Identifier: Apache-2.0
"""Bandwidth of pods: what they send is paced, what they receive is policed."""
