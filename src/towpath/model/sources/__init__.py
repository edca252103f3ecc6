# SPDX-License-Identifier: Apache-2.0
"""What sources of services are told in the configuration, and what they read."""
