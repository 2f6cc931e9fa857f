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

{{- define "feddp.coordinator.mounts" -}}
- {name: data, mountPath: /var/lib/feddp}
# Over the one that `init` wrote, so that commands with --dir read what the coordinator does.
- {name: config, mountPath: /var/lib/feddp/installation/coordinator.yaml, subPath: coordinator.yaml, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.coordinator.serverCertificate.secretName }}
- {name: server-certificate, mountPath: /etc/feddp/server, readOnly: true}
{{- end }}
{{- end -}}
