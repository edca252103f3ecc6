# SPDX-License-Identifier: Apache-2.0
"""What kube-proxy keeps in netfilter, by name: read, and what takes it out and puts it back."""
