# SPDX-License-Identifier: Apache-2.0
"""The library in C, by ctypes: Maglev tables, wildcard tables, the recorder's blocks."""
