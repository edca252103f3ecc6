{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/* The agents' configuration. */}}
{{- define "towpath.configuration" -}}
{{- if not .Values.kubernetes.server -}}
{{- fail "kubernetes.server: the API server's URL, by a way that doesn't lead through a Service, such as https://192.0.2.1:6443" -}}
{{- end -}}
{{- range $name := list "kubernetes" "socket" "limits" -}}
{{- if hasKey $.Values.config $name -}}
{{- fail (printf "config.%s: it is a value of its own" $name) -}}
{{- end -}}
{{- end -}}
{{- $kubernetes := .Values.kubernetes -}}
{{- with include "towpath.pools" . -}}
{{- $kubernetes = merge (dict "pools" .) $kubernetes -}}
{{- end -}}
{{- $mine := dict "kubernetes" $kubernetes "limits" .Values.limits -}}
{{- if not (kindIs "invalid" .Values.socket) -}}
{{- $_ := set $mine "socket" .Values.socket -}}
{{- end -}}
{{- toYaml (merge $mine .Values.config) -}}
{{- end -}}

{{/* NAMESPACE/NAME of the ConfigMap with pools, or nothing. */}}
{{- define "towpath.pools" -}}
{{- if .Values.kubernetes.pools -}}
{{- .Values.kubernetes.pools -}}
{{- else if .Values.pools -}}
{{- .Release.Namespace }}/towpath-pools
{{- end -}}
{{- end -}}

{{- define "towpath.labels" -}}
app.kubernetes.io/name: towpath
{{- end -}}
