{{/* What pods are made of. */}}

{{/* For the pods of Jobs too, which have no server: they take the values that no server overrides. */}}
{{- define "mallard.pod" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
serviceAccountName: {{ include "mallard.serviceAccountName" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "mallard.container" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
image: {{ include "mallard.image" (list $values.image $root) }}
imagePullPolicy: {{ $values.image.pullPolicy }}
securityContext:
  {{- toYaml $values.securityContext | nindent 2 }}
{{- end }}

{{/* Traces, for the OpenTelemetry SDK; takes the root and the service's name. */}}
{{- define "mallard.traces.env" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
{{- with $root.Values.traces }}
{{- if .endpoint }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: OTEL_SERVICE_NAME
  value: {{ $service }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: service.namespace={{ $root.Release.Namespace }},service.instance.id=$(POD_NAME),k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
- name: OTEL_TRACES_EXPORTER
  value: otlp
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .protocol }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .sampler }}
{{- if contains "ratio" .sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .samplerArg | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Pod template of a Job whose containers are `mallard` commands that log in; takes a dict of root, component, and
containers and initContainers as lists of {name, args}. The image has no shell: one command, one container. */}}
{{- define "mallard.job.template" -}}
metadata:
  labels:
    {{- include "mallard.selectorLabels" .root | nindent 4 }}
    app.kubernetes.io/part-of: mallard
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- include "mallard.pod" (list .root .root.Values) | nindent 2 }}
  restartPolicy: Never
  {{- with .initContainers }}
  initContainers:
    {{- range . }}
    {{- include "mallard.job.container" (dict "job" $ "container" .) | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    {{- range .containers }}
    {{- include "mallard.job.container" (dict "job" $ "container" .) | nindent 4 }}
    {{- end }}
  volumes:
    - name: login
      secret:
        secretName: {{ include "mallard.secretName" .root }}
        defaultMode: 0440
        items:
          - key: {{ .root.Values.auth.passwordKey }}
            path: password
    - name: tmp
      emptyDir: {}
    {{- with .root.Values.tls }}
    {{- if .caKey }}
    {{- with include "mallard.tls.volume" (list $.root false) }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- end }}
{{- end }}

{{- define "mallard.job.container" -}}
{{- $root := .job.root -}}
- name: {{ .container.name }}
  {{- include "mallard.container" (list $root $root.Values) | nindent 2 }}
  args:
    {{- range .container.args }}
    - {{ . | quote }}
    {{- end }}
  env:
    - name: MALLARD_USER
      value: {{ $root.Values.auth.user }}
    - name: MALLARD_PASSWORD_FILE
      value: /run/mallard/password
    {{- with include "mallard.tls.env" $root }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- with include "mallard.traces.env" (list $root (printf "mallard-%s" .job.component)) }}
    {{- . | trim | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml .job.resources | nindent 4 }}
  volumeMounts:
    - name: login
      mountPath: /run/mallard
      readOnly: true
    - name: tmp
      mountPath: /tmp
    {{- if $root.Values.tls.caKey }}
    {{- with include "mallard.tls.mount" $root }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end }}
