{{/* The namespace is part of the controller's name, which its certificate and all proxies know. */}}
{{- define "weft.namespace" -}}
{{- if ne .Release.Namespace "weft-system" -}}
{{- fail (printf "weft is installed into the namespace weft-system, not %s: add --namespace weft-system --create-namespace" .Release.Namespace) -}}
{{- end -}}
weft-system
{{- end -}}

{{- define "weft.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* (dict "root" $ "name" "weft-proxy") */}}
{{- define "weft.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .name (include "weft.tag" .root) }}
{{- end -}}

{{/* Of every object: (dict "root" $ "name" "weft-proxy") */}}
{{- define "weft.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ include "weft.tag" .root | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{/* Of a pod. Weft's own pods are never in the mesh, whatever their namespace says. */}}
{{- define "weft.podLabels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ include "weft.tag" .root | quote }}
weft.dev/mesh: disabled
{{- end -}}

{{- define "weft.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ include "weft.namespace" .root }}
  labels:
    {{- include "weft.labels" . | nindent 4 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* WEFT_LOG, and what of it is the same in all containers. */}}
{{- define "weft.logEnv" -}}
- name: WEFT_LOG
  value: {{ .Values.log.level | quote }}
{{- end -}}

{{- define "weft.seconds" -}}
{{- $n := regexFind "^[0-9]+" . | int -}}
{{- if hasSuffix "m" . -}}{{ mul $n 60 }}{{- else -}}{{ $n }}{{- end -}}
{{- end -}}
