# SPDX-License-Identifier: Apache-2.0
"""The tables of flows, read as a whole: listed, counted, aged."""
