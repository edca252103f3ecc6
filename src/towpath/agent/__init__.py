# SPDX-License-Identifier: Apache-2.0
"""The agent: one desired state from a file and an API, kept in force in the kernel."""
