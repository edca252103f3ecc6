# SPDX-License-Identifier: Apache-2.0
"""What both ends of the agent's socket share: documents, how they are written, and the client."""
