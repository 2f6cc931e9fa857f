{{/* Name of the release's objects; each component adds its own part. */}}
{{- define "feddp.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "feddp.coordinator" -}}{{ include "feddp.fullname" . }}-coordinator{{- end -}}
{{- define "feddp.enrolment" -}}{{ include "feddp.fullname" . }}-enrolment{{- end -}}
{{- define "feddp.transfer" -}}{{ include "feddp.fullname" . }}-transfer{{- end -}}
{{- define "feddp.backup" -}}{{ include "feddp.fullname" . }}-backup{{- end -}}
{{- define "feddp.agent" -}}{{ include "feddp.fullname" . }}-agent{{- end -}}

{{/* Labels of every object. Takes a list: the root, and the component. */}}
{{- define "feddp.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | quote }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service | quote }}
app.kubernetes.io/part-of: feddp
{{ include "feddp.selector" . }}
{{- end -}}

{{/* Labels by which pods of a component are found; never changed. */}}
{{- define "feddp.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: feddp
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Image by digest. */}}
{{- define "feddp.image" -}}
image: {{ printf "%s@%s" .repository .digest | quote }}
imagePullPolicy: {{ .pullPolicy }}
{{- end -}}

{{/* What every pod has, whatever it runs. Takes a list: the root, the component, its values. */}}
{{- define "feddp.pod" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
serviceAccountName: {{ include "feddp.fullname" $root }}-{{ index . 1 }}
automountServiceAccountToken: false
# Variables of Services could be taken for FEDDP_SECTION__KEY.
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $values.runAsUser }}
  runAsGroup: {{ $values.runAsUser }}
  fsGroup: {{ $values.runAsUser }}
  # Keys keep their modes after the first start.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
# The pods of a release do not share a machine where there is another.
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        app.kubernetes.io/name: feddp
        app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
  {{- end }}
  {{- if and (hasKey $values "replicas") (include "feddp.replicated" $root) }}
  # Replicas stand in for each other only on machines of their own: as evenly as there are machines.
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: DoNotSchedule
    nodeTaintsPolicy: Honor
    labelSelector:
      matchLabels:
        {{- include "feddp.selector" (list $root (index . 1)) | nindent 8 }}
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
{{- end -}}

{{/* What every container may do: nothing but run. */}}
{{- define "feddp.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  privileged: false
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* Peers of a network policy from a list of {cidr} or {namespace, podLabels}. */}}
{{- define "feddp.peers" -}}
{{- range . }}
{{- if .cidr }}
- ipBlock:
    cidr: {{ .cidr }}
{{- else }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ .namespace }}
  {{- with .podLabels }}
  podSelector:
    matchLabels:
      {{- toYaml . | nindent 6 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Ways out to what holds a coordinator's state, and a sidecar's to its control plane: rules of a
network policy. */}}
{{- define "feddp.coordinator.state" -}}
{{- $c := .Values.coordinator -}}
{{- if $c.objectStore.url }}
- ports:
    - {protocol: TCP, port: {{ $c.objectStore.port }}}
  {{- with $c.objectStore.peers }}
  to:
    {{- include "feddp.peers" . | nindent 4 }}
  {{- end }}
{{- end }}
{{- if eq $c.database.kind "postgresql" }}
- ports:
    - {protocol: TCP, port: {{ $c.database.port }}}
  {{- with $c.database.peers }}
  to:
    {{- include "feddp.peers" . | nindent 4 }}
  {{- end }}
{{- end }}
{{- if and .Values.istio.enabled .Values.istio.sidecar }}
- ports:
    - {protocol: TCP, port: 15012}
  to:
    {{- include "feddp.peers" (list (dict "namespace" .Values.istio.controlPlaneNamespace)) | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Annotations of a pod that has a sidecar. */}}
{{- define "feddp.sidecarAnnotations" -}}
# The sidecar is there before the coordinator asks for its database.
proxy.istio.io/config: '{"holdApplicationUntilProxyStarts": true}'
{{- end -}}

{{/* "true" where the coordinator posts alerts. */}}
{{- define "feddp.alertsGo" -}}
{{- $c := .Values.coordinator -}}
{{- if or $c.alertWebhook.urlSecret.name (dig "monitoring" "alert_webhook" "" $c.config) }}true{{ end -}}
{{- end -}}

{{/* Labels of the gateway's pods: those of a Gateway of the Gateway API are given by Istio. */}}
{{- define "feddp.gatewayLabels" -}}
{{- with .Values.istio.gateway -}}
{{- if .name }}
gateway.networking.k8s.io/gateway-name: {{ .name }}
{{- else }}
{{- toYaml .selector }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The port that nodes dial, and the one for joining. */}}
{{- define "feddp.publicPort" -}}{{ ternary .Values.istio.gateway.port 8443 .Values.istio.enabled }}{{- end -}}
{{- define "feddp.publicEnrolmentPort" -}}{{ ternary .Values.istio.gateway.port 8444 .Values.istio.enabled }}{{- end -}}
{{- define "feddp.publicTransferPort" -}}{{ ternary .Values.istio.gateway.port 8445 .Values.istio.enabled }}{{- end -}}

{{/* "true" where replicas can lead in turn: one store of models, one installation's keys for all. One pod
is then made as many are, so that another number of them changes nothing else. */}}
{{- define "feddp.replicated" -}}
{{- if and .Values.coordinator.objectStore.url .Values.coordinator.installation.secretName }}true{{ end -}}
{{- end -}}
