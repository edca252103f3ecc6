# SPDX-License-Identifier: Apache-2.0
"""The configuration file: read in a child process, watched, taken over or refused whole."""
