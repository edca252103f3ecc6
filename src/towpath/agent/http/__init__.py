# SPDX-License-Identifier: Apache-2.0
"""The agent's HTTP side: routes, what they answer, metrics, and the sockets they are served on."""
