# SPDX-License-Identifier: Apache-2.0
"""The backends' side: a program that takes outer headers off, and whose addresses it is for."""
