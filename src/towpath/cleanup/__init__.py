# SPDX-License-Identifier: Apache-2.0
"""Takes out what others have left on this node, with a way back."""
