# SPDX-License-Identifier: Apache-2.0
"""Between the model and the kernel's records: what is written, in which order."""
