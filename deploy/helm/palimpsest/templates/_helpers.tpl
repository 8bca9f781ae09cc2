{{- define "palimpsest.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "palimpsest.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "palimpsest.labels" -}}
{{ include "palimpsest.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: server
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "palimpsest.image" -}}
{{- $target := ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0) -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $target) -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}

{{- /* The standard health service, asked by the kubelet; where there is TLS, which it does not speak, by the command
line. */ -}}
{{- define "palimpsest.probe" -}}
{{- if .Values.tls.secretName -}}
exec:
  command:
    - palimpsest
    - health
    - --server=localhost:50051
    - --ca_file=/tls/ca.crt
    - --timeout=3s
    - --connect_timeout=3s
    {{- if .Values.tls.clientAuthority }}
    - --certificate_file=/tls/tls.crt
    - --key_file=/tls/tls.key
    {{- end }}
timeoutSeconds: 5
{{- else -}}
grpc: {port: 50051}
timeoutSeconds: 3
{{- end -}}
{{- end -}}
