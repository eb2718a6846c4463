{{/* What values mean. */}}

{{/* Makes of {root, server} the context of one server: adds its object name and its values, the defaults with what the
entry in `servers` overrides. */}}
{{- define "mallard.server" -}}
{{- $values := deepCopy (pick .root.Values
  "replicas" "image" "config" "listenHost" "resources" "memoryLimitPercent" "spill" "persistence" "backup" "service" "edge" "ingress" "gateway"
  "probes" "terminationGracePeriodSeconds" "podSecurityContext" "securityContext" "podAnnotations" "podLabels" "nodeSelector"
  "tolerations" "antiAffinity" "affinity" "topologySpreadConstraints" "priorityClassName" "podDisruptionBudget" "extraEnv"
  "extraEnvFrom" "extraVolumes" "extraVolumeMounts" "extraContainers" "extraInitContainers") }}
{{- include "mallard.merge" (dict "into" $values "from" (index .root.Values.servers .server)) }}
{{- $_ := set . "values" $values }}
{{- $_ := set . "name" (printf "%s-%s" (include "mallard.fullname" .root) .server) }}
{{- end }}

{{/* Puts .from over .into: maps are merged, null takes a key away, everything else replaces. */}}
{{- define "mallard.merge" -}}
{{- $into := .into }}
{{- range $key, $value := .from }}
{{- if kindIs "invalid" $value }}
{{- $_ := unset $into $key }}
{{- else if and (kindIs "map" $value) (kindIs "map" (get $into $key)) }}
{{- include "mallard.merge" (dict "into" (get $into $key) "from" $value) }}
{{- else }}
{{- $_ := set $into $key $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* Bytes of a quantity such as 4Gi, 512Mi, 2G, 1.5Gi or 1073741824. */}}
{{- define "mallard.bytes" -}}
{{- $text := kindIs "string" . | ternary . (printf "%d" (int64 .)) }}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text }}
{{- mulf (float64 $number) (get $units (trimPrefix $number $text)) | int64 }}
{{- end }}

{{/* .percent of the quantity .of, as Mallard writes sizes. */}}
{{- define "mallard.share" -}}
{{- $bytes := div (mul (include "mallard.bytes" .of | int64) (int64 .percent)) 100 }}
{{- if lt $bytes 1048576 }}{{ $bytes }}B{{ else }}{{ div $bytes 1048576 }}MiB{{ end }}
{{- end }}

{{/* Seconds of a duration such as 30s, 1m30s or 500ms, rounded up. */}}
{{- define "mallard.seconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 }}
{{- $milliseconds := 0 }}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 }}
{{- $number := regexFind "^[0-9]+" . }}
{{- $milliseconds = add $milliseconds (mul (int64 $number) (get $units (trimPrefix $number .))) }}
{{- end }}
{{- div (add $milliseconds 999) 1000 }}
{{- end }}

{{- define "mallard.image" -}}
{{- $image := index . 0 }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 1).Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* A value as TOML has it, maps as inline tables. */}}
{{- define "mallard.toml.value" -}}
{{- if kindIs "map" . }}
{{- $pairs := list }}
{{- range $key, $value := . }}
{{- $pairs = append $pairs (printf "%s = %s" (toJson $key) (include "mallard.toml.value" $value)) }}
{{- end }}
{{- printf "{%s}" (join ", " $pairs) }}
{{- else if kindIs "slice" . }}
{{- $items := list }}
{{- range . }}
{{- $items = append $items (include "mallard.toml.value" .) }}
{{- end }}
{{- printf "[%s]" (join ", " $items) }}
{{- else if kindIs "string" . }}
{{- toJson . }}
{{- else if kindIs "bool" . }}
{{- . }}
{{- else }}
{{- int64 . }}
{{- end }}
{{- end }}

{{/* mallard.toml of one server. toToml would write whole numbers as 16.0. */}}
{{- define "mallard.server.toml" -}}
{{- range $section, $keys := .values.config }}
{{- if $keys }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ include "mallard.toml.value" $value }}
{{- end }}
{{ end }}
{{- end }}
{{- end }}

{{/* Text of the values that may hold a template, which sees .server beside what every template sees. */}}
{{- define "mallard.server.tpl" -}}
{{- $root := .context.root }}
{{- tpl .text (dict "server" .context.server "Values" $root.Values "Release" $root.Release "Chart" $root.Chart "Capabilities" $root.Capabilities "Template" $root.Template) }}
{{- end }}

{{/* Host name and TLS Secret of one server at the edge. */}}
{{- define "mallard.server.host" -}}
{{- $host := include "mallard.server.tpl" (dict "context" . "text" .values.edge.host) }}
{{- if not (regexMatch "^([*][.])?[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$" $host) }}
{{- fail (printf "edge.host: server %s has %q, which is no host name; ingress and gateway need one for each server" .server $host) }}
{{- end }}
{{- range $other, $_ := .root.Values.servers }}
{{- if ne $other $.server }}
{{- $context := dict "root" $.root "server" $other }}
{{- include "mallard.server" $context }}
{{- if and (or $context.values.ingress.enabled $context.values.gateway.enabled) (eq $host (include "mallard.server.tpl" (dict "context" $context "text" $context.values.edge.host))) }}
{{- fail (printf "edge.host: servers %s and %s have the same host name %s; put {{ .server }} into it" $.server $other $host) }}
{{- end }}
{{- end }}
{{- end }}
{{- $host }}
{{- end }}

{{- define "mallard.server.tlsSecret" -}}
{{- include "mallard.server.tpl" (dict "context" . "text" .values.edge.tls.secretName) | default (printf "%s-tls" .name) }}
{{- end }}

{{/* The two servers of the demo. */}}
{{- define "mallard.demo.servers" -}}
{{- $names := .Values.demo.servers | default (keys .Values.servers | sortAlpha) }}
{{- if lt (len $names) 2 }}
{{- fail "demo.enabled: the demo needs two servers, and `servers` has one" }}
{{- end }}
{{- $names := slice $names 0 2 }}
{{- range $names }}
{{- if not (hasKey $.Values.servers .) }}
{{- fail (printf "demo.servers: there is no server %s in `servers`" .) }}
{{- end }}
{{- end }}
{{- join " " $names }}
{{- end }}
