{{- define "stucktrace.fullname" -}}
{{- .Values.fullnameOverride | default (printf "%s-agent" .Release.Name) | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "stucktrace.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "stucktrace.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "stucktrace.selector" -}}
app.kubernetes.io/name: stucktrace
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "stucktrace.labels" -}}
{{ include "stucktrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: stucktrace
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "stucktrace.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Who is asked for the pods' names: "off", "api" or "kubelet". */ -}}
{{- define "stucktrace.pods" -}}
{{- dig "kubernetes" "pods" "off" .Values.config -}}
{{- end -}}

{{- define "stucktrace.capabilities" -}}
{{- $entering := ternary (list "SYS_ADMIN" "NET_ADMIN") list .Values.networkNamespaces.enter -}}
{{- concat .Values.capabilities $entering | uniq | toJson -}}
{{- end -}}

{{- /* Under whose priority; "" is nobody's. */ -}}
{{- define "stucktrace.priorityClass" -}}
{{- if .Values.priorityClass.create -}}{{ include "stucktrace.fullname" . }}{{- else -}}{{ .Values.priorityClass.name }}{{- end -}}
{{- end -}}

{{- /*
One value as TOML. Values files know no integers (Helm reads every number as a float), TOML does; a JSON string is a TOML
string too.
*/ -}}
{{- define "stucktrace.tomlValue" -}}
{{- if kindIs "map" . -}}
{ {{- range $i, $key := keys . | sortAlpha }}{{ if $i }},{{ end }} {{ $key | toJson }} = {{ include "stucktrace.tomlValue" (get $ $key) }}{{ end }} }
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{- define "stucktrace.toml" -}}
{{- $tables := deepCopy .Values.config -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $tables "metrics" (dict "listen" (printf "%s:%d" .Values.metrics.address (int .Values.metrics.port))) -}}
{{- end -}}
{{- range $i, $table := keys $tables | sortAlpha -}}
{{- if $i }}

{{ end -}}
[{{ $table }}]
{{- range $key, $value := get $tables $table }}
{{ $key }} = {{ include "stucktrace.tomlValue" $value }}
{{- end -}}
{{- end -}}
{{- end -}}
