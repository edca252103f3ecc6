# SPDX-License-Identifier: Apache-2.0
"""Services in packets of pods whose connect() never runs on this node."""
