# SPDX-License-Identifier: Apache-2.0
"""Services at the socket: connect() goes straight to a backend."""
