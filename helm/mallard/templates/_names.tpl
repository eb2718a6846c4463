{{/* Names and labels. A StatefulSet's name has 52 characters at most, because a label of its pods is that and a hash:
36 are the common part, 15 the server's name. What is longer is cut, and a hash keeps it apart from others. */}}

{{- define "mallard.fullname" -}}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
{{- $chart := .Values.nameOverride | default .Chart.Name }}
{{- $name = contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart) }}
{{- end }}
{{- $name = $name | replace "." "-" }}
{{- /* Services begin with a letter. */}}
{{- if not (regexMatch "^[a-z]" $name) }}
{{- $name = printf "%s-%s" .Chart.Name $name }}
{{- end }}
{{- if gt (len $name) 36 }}
{{- $name = printf "%s-%s" ($name | trunc 27 | trimSuffix "-") ($name | sha256sum | trunc 8) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "mallard.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "mallard.fullname" .) "default") }}
{{- end }}

{{- define "mallard.secretName" -}}
{{- .Values.auth.existingSecret | default (include "mallard.fullname" .) }}
{{- end }}

{{/* What selectors are made of: nothing that an upgrade changes. */}}
{{- define "mallard.selectorLabels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mallard.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "mallard.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: mallard
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* One server's selector; takes the context of mallard.server. */}}
{{- define "mallard.server.selectorLabels" -}}
{{ include "mallard.selectorLabels" .root }}
app.kubernetes.io/component: server
mallard-db.github.io/server: {{ .server }}
{{- end }}

{{- define "mallard.server.labels" -}}
{{ include "mallard.labels" .root }}
app.kubernetes.io/component: server
mallard-db.github.io/server: {{ .server }}
{{- end }}

{{/* Under this URI everything in the cluster finds the server. */}}
{{- define "mallard.server.uri" -}}
grpc{{ if .root.Values.tls.existingSecret }}+tls{{ end }}://{{ .name }}.{{ .root.Release.Namespace }}.svc:8815
{{- end }}

{{/* Where the Secret of tls.existingSecret is, in servers and Jobs. */}}
{{- define "mallard.tls.mount" -}}
{{- if .Values.tls.existingSecret }}
- name: tls
  mountPath: /etc/mallard-tls
  readOnly: true
{{- end }}
{{- end }}

{{/* Takes the root, and whether the private key is needed. */}}
{{- define "mallard.tls.volume" -}}
{{- $root := index . 0 }}
{{- with $root.Values.tls }}
{{- if .existingSecret }}
- name: tls
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
    items:
      {{- if index $ 1 }}
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
      {{- end }}
      {{- if .caKey }}
      - key: {{ .caKey }}
        path: ca.crt
      {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What `mallard` commands trust. */}}
{{- define "mallard.tls.env" -}}
{{- if and .Values.tls.existingSecret .Values.tls.caKey }}
- name: MALLARD_TLS_CA
  value: /etc/mallard-tls/ca.crt
{{- end }}
{{- end }}
