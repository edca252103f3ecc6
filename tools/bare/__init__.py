# SPDX-License-Identifier: Apache-2.0
"""Runs the README's commands on machines that have nothing but Debian's smallest system."""
