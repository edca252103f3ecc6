# SPDX-License-Identifier: Apache-2.0
"""BPF: objects, maps, programs and links by libbpf, types by BTF, and what this kernel can do."""
