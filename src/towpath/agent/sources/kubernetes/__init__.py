# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster as a source: its Services by list and watch.

`access` knows where the API server is and by what credentials, `client` speaks to it, `watch`
follows one kind of objects, `source` puts all kinds together and hands services in.
"""

from towpath.agent.sources.kubernetes.source import Source

__all__ = ["Source"]
