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
