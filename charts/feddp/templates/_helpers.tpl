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

{{/* The port that nodes dial, and the one for joining. */}}
{{- define "feddp.publicPort" -}}{{ ternary .Values.istio.gateway.port 8443 .Values.istio.enabled }}{{- end -}}
{{- define "feddp.publicEnrolmentPort" -}}{{ ternary .Values.istio.gateway.port 8444 .Values.istio.enabled }}{{- end -}}

{{/* "true" where replicas can lead in turn: one store of models, one installation's keys for all. One pod
is then made as many are, so that another number of them changes nothing else. */}}
{{- define "feddp.replicated" -}}
{{- if and .Values.coordinator.objectStore.url .Values.coordinator.installation.secretName }}true{{ end -}}
{{- end -}}
