# SPDX-License-Identifier: Apache-2.0
"""The cgroup that programs are attached to: which, why, and whether they run there."""
