# SPDX-License-Identifier: Apache-2.0
"""Which versions are tried. The modules below ``modules/`` pin what they are made of."""

from __future__ import annotations

KUBERNETES = "1.37.2"
ETCD = "3.7.3"
HELM = "4.3.2"
