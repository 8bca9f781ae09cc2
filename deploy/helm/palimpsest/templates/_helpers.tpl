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

{{- define "palimpsest.envoy" -}}
{{- $text := .Files.Get "envoy/envoy.yaml" | replace "{address: palimpsest, port_value: 50051}" "{address: 127.0.0.1, port_value: 50052}" -}}
{{- if .Values.tls.secretName -}}
{{- $files := dict "certificate_chain" (dict "filename" "/tls/tls.crt") "private_key" (dict "filename" "/tls/tls.key") -}}
{{- $common := dict "tls_certificates" (list $files) "alpn_protocols" (list "h2") -}}
{{- $context := dict "@type" "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" "common_tls_context" $common -}}
{{- if .Values.tls.clientAuthority -}}
{{- $_ := set $common "validation_context" (dict "trusted_ca" (dict "filename" "/tls/ca.crt")) -}}
{{- $_ := set $context "require_client_certificate" true -}}
{{- end -}}
{{- $socket := dict "name" "envoy.transport_sockets.tls" "typed_config" $context | toJson -}}
{{- $text = $text | replace "        - filters:\n" (printf "        - transport_socket: %s\n          filters:\n" $socket) -}}
{{- end -}}
{{- $text -}}
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
