# SPDX-License-Identifier: Apache-2.0
"""The way of health checks' packets: through the tunnel, as clients' packets go."""
