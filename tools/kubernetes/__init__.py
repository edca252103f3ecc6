# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes on this machine: control plane, nodes and pods, in namespaces of their own."""
