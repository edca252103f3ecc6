// SPDX-License-Identifier: Apache-2.0

// What this module builds.

//go:build tools

package tools

import (
	_ "helm.sh/helm/v4/cmd/helm"
)
