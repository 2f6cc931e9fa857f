{{/* Name of the release's objects; each component adds its own part. */}}
{{- define "feddp.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "feddp.coordinator" -}}{{ include "feddp.fullname" . }}-coordinator{{- end -}}
{{/* Of what stands in the gateway's namespace, which it shares with other namespaces' releases. No namespace
has a dot in its name. */}}
{{- define "feddp.atGateway" -}}{{ .Release.Namespace }}.{{ include "feddp.coordinator" . }}{{- end -}}
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

{{/* Port of an address: as it says, else as its scheme has it. */}}
{{- define "feddp.portOf" -}}
{{- $authority := regexFind "^[a-z0-9]+:(//[^/?]*)?" . -}}
{{- $said := regexFind ":[0-9]+$" $authority | trimPrefix ":" -}}
{{- $said | default (ternary "80" "443" (hasPrefix "http:" $authority)) -}}
{{- end -}}

{{/* Whether a port that was given for the network policy cannot be that of an address, "true": with
no peer that is a pod, whose port may be another than its Service's. Takes a list: the port, the
address, the peers. */}}
{{- define "feddp.portMissed" -}}
{{- $pods := false -}}
{{- range index . 2 }}{{ if .namespace }}{{ $pods = true }}{{ end }}{{ end -}}
{{- if and (index . 0) (index . 1) (not $pods) (ne (toString (index . 0)) (include "feddp.portOf" (index . 1))) -}}true{{- end -}}
{{- end -}}

{{/* Thousandths of a core; bytes as Mi. For comparisons. */}}
{{- define "feddp.milli" -}}
{{- $said := toString . -}}
{{- if hasSuffix "m" $said }}{{ trimSuffix "m" $said | float64 }}{{ else }}{{ mulf 1000 ($said | float64) }}{{ end -}}
{{- end -}}
{{- define "feddp.mebi" -}}
{{- $unit := dict "Mi" 1 "Gi" 1024 "Ti" 1048576 -}}
{{- mul (regexFind "^[0-9]+" . | int64) (index $unit (regexFind "[A-Z]i$" .)) -}}
{{- end -}}

{{/* Ways out to what holds a coordinator's state, and a sidecar's to its control plane: rules of a
network policy. */}}
{{- define "feddp.coordinator.state" -}}
{{- $c := .Values.coordinator -}}
{{- if $c.objectStore.url }}
- ports:
    - {protocol: TCP, port: {{ $c.objectStore.port | default (include "feddp.portOf" ($c.objectStore.endpoint | default "https:")) }}}
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

{{/* Annotations of the coordinator's pod that are not the values'. */}}
{{- define "feddp.coordinator.annotations" -}}
# The file is read at the start.
checksum/config: {{ include (print $.Template.BasePath "/coordinator/configmap.yaml") . | sha256sum }}
kubectl.kubernetes.io/default-container: coordinator
{{- if and .Values.istio.enabled .Values.istio.sidecar }}
{{ include "feddp.sidecarAnnotations" . }}
{{- if include "feddp.replicated" . }}
# Replicas reach each other by address, with TLS of their clients' own: nothing for a sidecar.
traffic.sidecar.istio.io/excludeOutboundPorts: "8443,8444"
{{- end }}
{{- end }}
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

{{/* "true" while the coordinator is to have no pod. A HorizontalPodAutoscaler would leave it at none for
ever; there is none meanwhile, and the one that comes back finds one pod or more. */}}
{{- define "feddp.hasNoPod" -}}
{{- if or .Values.coordinator.stopped .Values.coordinator.restore.file }}true{{ end -}}
{{- end -}}

{{/* "true" where replicas can lead in turn: one store of models, one installation's keys for all. One pod
is then made as many are, so that another number of them changes nothing else. */}}
{{- define "feddp.replicated" -}}
{{- if and .Values.coordinator.objectStore.url .Values.coordinator.installation.secretName }}true{{ end -}}
{{- end -}}
