# SPDX-License-Identifier: Apache-2.0
"""The ``towpath`` command: one module for each verb, imported when it is called."""
