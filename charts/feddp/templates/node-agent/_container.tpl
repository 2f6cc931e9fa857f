{{- define "feddp.agent.env" -}}
- {name: HOME, value: /tmp}
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
{{- end -}}

{{- define "feddp.agent.mounts" -}}
- {name: data, mountPath: /var/lib/feddp}
- {name: tmp, mountPath: /tmp}
- {name: steward, mountPath: /etc/feddp/steward, readOnly: true}
{{- if .Values.nodeAgent.proxy.credentialsSecret }}
- {name: proxy, mountPath: /etc/feddp/proxy, readOnly: true}
{{- end }}
{{- end -}}
