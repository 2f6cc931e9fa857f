{{- define "feddp.coordinator.env" -}}
- {name: HOME, value: /tmp}
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
- {name: FEDDP_DIR, value: /var/lib/feddp/installation}
{{- with .Values.coordinator.database }}
{{- if eq .kind "postgresql" }}
- name: FEDDP_STORAGE__DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .urlSecret.name }}
      key: {{ .urlSecret.key }}
{{- end }}
{{- end }}
{{- with $secret := .Values.coordinator.objectStore.credentialsSecret.name }}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_REGION" }}
- name: {{ $key }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ $key }}
      {{- if eq $key "AWS_REGION" }}
      optional: true
      {{- end }}
{{- end }}
{{- end }}
{{- if include "feddp.replicated" . }}
# Where the others reach this one; it changes when the pod is made anew.
- name: FEDDP_SERVER__REPLICA_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end }}
{{- end -}}

{{/* What only a coordinator that serves, and the check before, need. */}}
{{- define "feddp.coordinator.watchEnv" -}}
{{- with .Values.coordinator.alertWebhook.urlSecret }}
{{- if .name }}
- name: FEDDP_MONITORING__ALERT_WEBHOOK
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.coordinator.tracing.headersSecret }}
{{- if .name }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "feddp.coordinator.mounts" -}}
- {name: data, mountPath: /var/lib/feddp}
# Over the one that `init` wrote, so that commands with --dir read what the coordinator does.
- {name: config, mountPath: /var/lib/feddp/installation/coordinator.yaml, subPath: coordinator.yaml, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.coordinator.serverCertificate.secretName }}
- {name: server-certificate, mountPath: /etc/feddp/server, readOnly: true}
{{- end }}
{{- if .Values.coordinator.tracing.caConfigMap.name }}
- {name: trace-ca, mountPath: /etc/feddp/trace-ca, readOnly: true}
{{- end }}
{{- if .Values.coordinator.alertWebhook.caConfigMap.name }}
- {name: alert-ca, mountPath: /etc/feddp/alert-ca, readOnly: true}
{{- end }}
{{- if .Values.coordinator.alertWebhook.signingSecret.name }}
- {name: alert-signing, mountPath: /etc/feddp/alert-signing, readOnly: true}
{{- end }}
{{- end -}}

{{- define "feddp.coordinator.copyKeys" -}}
{{- $c := .Values.coordinator -}}
# The installation's keys from its Secret, at every start; the server's certificate is made here.
- name: install
  {{- include "feddp.image" $c.image | nindent 2 }}
  command: [/bin/sh, -ec]
  args:
    - |
      dir=/var/lib/feddp/installation
      feddp coordinator copy-keys --from /etc/feddp/installation --dir "$dir" \
        --trust-domain "$TRUST_DOMAIN" --host "$HOST" --enrollment-host "$ENROLMENT_HOST" >&2
      # The ConfigMap's file is mounted over it.
      if [ ! -e "$dir/coordinator.yaml" ]; then : > "$dir/coordinator.yaml"; fi
  env:
    - {name: TRUST_DOMAIN, value: {{ $c.trustDomain | quote }}}
    - {name: HOST, value: {{ $c.hosts.coordinator | quote }}}
    - {name: ENROLMENT_HOST, value: {{ $c.hosts.enrolment | quote }}}
    - {name: HOME, value: /tmp}
    - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
  volumeMounts:
    - {name: data, mountPath: /var/lib/feddp}
    - {name: installation, mountPath: /etc/feddp/installation, readOnly: true}
    - {name: tmp, mountPath: /tmp}
  resources:
    {{- toYaml $c.resources | nindent 4 }}
  {{- include "feddp.container" . | nindent 2 }}
{{- end -}}

{{/* A volume of one file. Takes a list: configMap or secret, the volume's name, a dict of name and
key, the file. */}}
{{- define "feddp.file" -}}
{{- $kind := index . 0 -}}
{{- $of := index . 2 -}}
- name: {{ index . 1 }}
  {{- if eq $kind "secret" }}
  secret:
    secretName: {{ $of.name }}
    defaultMode: 0440
  {{- else }}
  configMap:
    name: {{ $of.name }}
  {{- end }}
    items:
      - {key: {{ $of.key }}, path: {{ index . 3 }}}
{{- end -}}
