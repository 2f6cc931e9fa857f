{{/* What a form cannot say: values that do not go together, each with the reason and what to do. */}}
{{- define "feddp.checks" -}}
{{- $c := .Values.coordinator -}}
{{- $a := .Values.nodeAgent -}}
{{- $i := .Values.istio -}}
{{- if not (or $c.enabled $a.enabled) -}}
{{- fail "coordinator.enabled and nodeAgent.enabled are both false, so there is nothing to install; set one of them." -}}
{{- end -}}
{{- if $c.enabled -}}
  {{- if gt (int $c.replicas) 1 -}}
    {{- if eq $c.database.kind "sqlite" -}}
    {{- fail "coordinator.replicas must be 1 on SQLite: it is one file on one volume, and one machine has it. Set coordinator.database.kind postgresql for more." -}}
    {{- end -}}
    {{- if not $c.objectStore.url -}}
    {{- fail "coordinator.objectStore.url is needed for coordinator.replicas above 1: with a volume each, the next leader would not find what the one before it has acknowledged." -}}
    {{- end -}}
    {{- if not $c.installation.secretName -}}
    {{- fail "coordinator.installation.secretName is needed for coordinator.replicas above 1: every replica has the same authority and ledger key, and each first start would make others. Make the Secret as docs/helm.md says." -}}
    {{- end -}}
    {{- if $c.storage.existingClaim -}}
    {{- fail "coordinator.storage.existingClaim is for one pod; leave it out where coordinator.replicas is above 1, and each gets a volume of its own." -}}
    {{- end -}}
  {{- end -}}
  {{- if $c.hosts.transfer -}}
    {{- if not (include "feddp.replicated" .) -}}
    {{- fail "coordinator.hosts.transfer is for replicas: it needs coordinator.objectStore.url and coordinator.installation.secretName, as every pod serves from the store what another one has taken." -}}
    {{- end -}}
    {{- if not (hasSuffix (printf ".%s" $c.hosts.coordinator) $c.hosts.transfer) -}}
    {{- fail "coordinator.hosts.transfer must be a name under coordinator.hosts.coordinator, such as transfer.HOST: nodes dial no other host on the coordinator's word." -}}
    {{- end -}}
    {{- if eq $c.hosts.transfer $c.hosts.enrolment -}}
    {{- fail "coordinator.hosts.transfer must be another name than coordinator.hosts.enrolment: each name leads to one port, and nodes that join would come to the one for models and updates." -}}
    {{- end -}}
  {{- end -}}
  {{- if $c.autoscaling.enabled -}}
    {{- if not $c.hosts.transfer -}}
    {{- fail "coordinator.autoscaling.enabled needs coordinator.hosts.transfer: without it one pod serves everything, and more of them carry no more." -}}
    {{- end -}}
    {{- if le (int $c.autoscaling.maxReplicas) (int $c.replicas) -}}
    {{- fail "coordinator.autoscaling.maxReplicas must be above coordinator.replicas, which is how many pods there are at least." -}}
    {{- end -}}
  {{- end -}}
  {{- if and $c.installation.secretName (eq $c.database.kind "sqlite") -}}
  {{- fail "coordinator.installation.secretName goes with coordinator.database.kind postgresql: the installation's people stand in the database that `feddp coordinator init` was given, which is no file in a pod." -}}
  {{- end -}}
  {{- if and $c.objectStore.url (not $c.objectStore.credentialsSecret.name) -}}
  {{- fail "coordinator.objectStore.credentialsSecret.name is needed with objectStore.url: the Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the pod has no token and no way to a machine's role." -}}
  {{- end -}}
  {{- if and (not $c.objectStore.url) (or $c.objectStore.endpoint $c.objectStore.credentialsSecret.name $c.objectStore.peers) -}}
  {{- fail "coordinator.objectStore.endpoint, credentialsSecret and peers belong to objectStore.url, which is not given; set it, or leave them out." -}}
  {{- end -}}
  {{- if or (not $c.image.repository) (not $c.image.digest) -}}
  {{- fail "coordinator.image.repository and coordinator.image.digest are both needed: no image is published, and one that is named by tag could be replaced. Build one (docs/helm.md) and give its digest." -}}
  {{- end -}}
  {{- if not $c.hosts.coordinator -}}
  {{- fail "coordinator.hosts.coordinator is needed: the DNS name that nodes dial goes into the server's certificate at the first start." -}}
  {{- end -}}
  {{- if eq $c.database.kind "postgresql" -}}
    {{- if not $c.database.urlSecret.name -}}
    {{- fail "coordinator.database.urlSecret.name is needed for postgresql: the Secret that holds the URL, which contains a password and is never given as a value." -}}
    {{- end -}}
  {{- else if or $c.database.urlSecret.name $c.database.externalSecret.enabled -}}
  {{- fail "coordinator.database.urlSecret and externalSecret are for coordinator.database.kind postgresql; set it, or leave them out." -}}
  {{- end -}}
  {{- if and $c.database.externalSecret.enabled (not (and $c.database.externalSecret.store.name $c.database.externalSecret.remoteKey)) -}}
  {{- fail "coordinator.database.externalSecret needs store.name and remoteKey: where External Secrets finds the URL." -}}
  {{- end -}}
  {{- if $c.serverCertificate.certManager.enabled -}}
    {{- if not (and $c.serverCertificate.secretName $c.serverCertificate.certManager.issuer.name) -}}
    {{- fail "coordinator.serverCertificate.certManager needs serverCertificate.secretName, the Secret that it makes, and certManager.issuer.name." -}}
    {{- end -}}
  {{- end -}}
  {{- $endpoint := dig "monitoring" "trace_endpoint" "" $c.config -}}
  {{- if and (not $endpoint) (or $c.tracing.caConfigMap.name $c.tracing.headersSecret.name $c.tracing.peers) -}}
  {{- fail "coordinator.tracing.caConfigMap, headersSecret and peers belong to a collector, which coordinator.config.monitoring.trace_endpoint names; set it, or leave them out." -}}
  {{- end -}}
  {{- if and $c.tracing.caConfigMap.name (hasPrefix "http:" $endpoint) -}}
  {{- fail "coordinator.tracing.caConfigMap goes with an https address in coordinator.config.monitoring.trace_endpoint: by http no certificate is looked at." -}}
  {{- end -}}
  {{- $webhook := dig "monitoring" "alert_webhook" "" $c.config -}}
  {{- if and $webhook $c.alertWebhook.urlSecret.name -}}
  {{- fail "coordinator.alertWebhook.urlSecret and coordinator.config.monitoring.alert_webhook both say where alerts go; keep the Secret, where the address holds a password, else the other." -}}
  {{- end -}}
  {{- if include "feddp.portMissed" (list $c.objectStore.port $c.objectStore.endpoint $c.objectStore.peers) -}}
  {{- fail "coordinator.objectStore.port is another than that of coordinator.objectStore.endpoint, so that the network policy would keep the coordinator from its store; leave it out, or name the store's pods in objectStore.peers, if it is their port." -}}
  {{- end -}}
  {{- if include "feddp.portMissed" (list $c.alertWebhook.port $webhook $c.alertWebhook.peers) -}}
  {{- fail "coordinator.alertWebhook.port is another than that of coordinator.config.monitoring.alert_webhook, so that the network policy would keep alerts from their receiver; leave it out, or name the receiver's pods in alertWebhook.peers, if it is their port." -}}
  {{- end -}}
  {{- if and (not (include "feddp.alertsGo" .)) (or $c.alertWebhook.caConfigMap.name $c.alertWebhook.signingSecret.name $c.alertWebhook.peers) -}}
  {{- fail "coordinator.alertWebhook.caConfigMap, signingSecret and peers belong to a receiver; name it in coordinator.alertWebhook.urlSecret or coordinator.config.monitoring.alert_webhook, or leave them out." -}}
  {{- end -}}
  {{- if and $c.gatewaySidecar $i.enabled -}}
  {{- fail "coordinator.gatewaySidecar is for a gateway and a proxy of your own, without istio.enabled: the chart's gateway speaks to the coordinator itself, and with two elements wanted in its header every node would be refused." -}}
  {{- end -}}
  {{- if or $c.backup.enabled $c.restore.file -}}
    {{- if and $c.restore.file (not $c.backup.claim) -}}
    {{- fail "coordinator.backup.claim is needed with coordinator.restore.file: the PersistentVolumeClaim that the backup lies on, in the folder NAMESPACE-RELEASE-feddp." -}}
    {{- end -}}
    {{- if not $c.backup.claim -}}
    {{- fail "coordinator.backup.claim is needed with coordinator.backup.enabled: the PersistentVolumeClaim that backups go to. The chart makes none, as what is to outlive an installation should not be part of it." -}}
    {{- end -}}
    {{- $volumes := printf "^data-%s-[0-9]+$" (include "feddp.coordinator" . | replace "." "[.]") -}}
    {{- if or (eq $c.backup.claim $c.storage.existingClaim) (and (not $c.storage.existingClaim) (regexMatch $volumes $c.backup.claim)) -}}
    {{- fail "coordinator.backup.claim must be another claim than the coordinator's own: a backup on the volume that it is of is lost with it." -}}
    {{- end -}}
    {{- if and $c.backup.enabled $c.backup.keys (not $c.backup.passwordSecret.name) -}}
    {{- fail "coordinator.backup.passwordSecret.name is needed with coordinator.backup.keys: a backup that holds keys is always sealed. Make one from `openssl rand -base64 32`, and keep that elsewhere, too." -}}
    {{- end -}}
  {{- end -}}
  {{- if and $c.restore.revocationsConfigMap $c.restore.withoutRevocations -}}
  {{- fail "coordinator.restore.revocationsConfigMap and withoutRevocations contradict each other: give the files of who was shut out after the backup, or, where none is left, go on without." -}}
  {{- end -}}
  {{- if and $c.restore.file (include "feddp.replicated" .) (not (or $c.restore.revocationsConfigMap $c.restore.withoutRevocations)) -}}
  {{- fail "coordinator.restore.revocationsConfigMap is needed with coordinator.objectStore.url and installation.secretName: the files of who was shut out after the backup are on the pods' volumes, and no Job mounts those. Take them before the pods end, or set withoutRevocations where none is left." -}}
  {{- end -}}
  {{- if and (not $c.restore.file) (or $c.restore.revocationsConfigMap $c.restore.withoutRevocations) -}}
  {{- fail "coordinator.restore.revocationsConfigMap and withoutRevocations belong to coordinator.restore.file, the backup that is restored; name it, or leave them out." -}}
  {{- end -}}
  {{- range regexFindAll "[0-9]+-[0-9]+" $c.backup.schedule -1 -}}
    {{- $ends := splitList "-" . -}}
    {{- if gt (first $ends | trimPrefix "0" | int) (last $ends | trimPrefix "0" | int) -}}
    {{- fail "coordinator.backup.schedule has a range whose end is before its beginning, which is no time; write the smaller number first, or two ranges with a comma." -}}
    {{- end -}}
  {{- end -}}
  {{- with $c.serverCertificate.certManager -}}
    {{- if ge (trimSuffix "h" .renewBefore | int) (trimSuffix "h" .duration | int) -}}
    {{- fail "coordinator.serverCertificate.certManager.renewBefore must be shorter than duration: else each certificate is to be renewed before it begins." -}}
    {{- end -}}
  {{- end -}}
  {{- include "feddp.checkResources" (list "coordinator" $c.resources) -}}
  {{- include "feddp.checkResources" (list "coordinator.backup" $c.backup.resources) -}}
  {{- if lt (int $c.shutdown.graceSeconds) (add (int $c.shutdown.preStopSeconds) 20 | int) -}}
  {{- fail "coordinator.shutdown.graceSeconds must be at least preStopSeconds and 20 more: the coordinator lets its sessions go for 5 s and then ends what it is writing; killed before that, it starts by repeating it." -}}
  {{- end -}}
{{- end -}}
{{- if and $c.enabled .Values.networkPolicy.enabled (not $i.enabled) (not .Values.networkPolicy.clients) -}}
{{- fail "networkPolicy.clients is needed where Istio's gateway does not bring nodes in (istio.enabled): with nobody in it the default deny keeps every node from the coordinator." -}}
{{- end -}}
{{- if $a.enabled -}}
  {{- if or (not $a.image.repository) (not $a.image.digest) -}}
  {{- fail "nodeAgent.image.repository and nodeAgent.image.digest are both needed: no image is published, and one that is named by tag could be replaced. deploy/Dockerfile makes one." -}}
  {{- end -}}
  {{- if not $a.joinToken.secretName -}}
  {{- fail "nodeAgent.joinToken.secretName is needed: the Secret that holds what the coordinator's operator sent (`feddp node token`)." -}}
  {{- end -}}
  {{- if not $a.stewardConfigMap -}}
  {{- fail "nodeAgent.stewardConfigMap is needed: the ConfigMap with the data steward's policy.yaml and datasets.yaml, without which nothing is allowed." -}}
  {{- end -}}
  {{- $paths := list -}}
  {{- range $a.records -}}
    {{- if has .path $paths -}}
    {{- fail "nodeAgent.records names a path twice: one folder has one volume; give each claim a path of its own." -}}
    {{- end -}}
    {{- $paths = append $paths .path -}}
  {{- end -}}
  {{- include "feddp.checkResources" (list "nodeAgent" $a.resources) -}}
  {{- if and $a.proxy.credentialsSecret (not $a.proxy.url) -}}
  {{- fail "nodeAgent.proxy.credentialsSecret goes with nodeAgent.proxy.url, the proxy that they are for." -}}
  {{- end -}}
{{- end -}}
{{- if $i.enabled -}}
  {{- if not $c.enabled -}}
  {{- fail "istio.enabled needs coordinator.enabled: an agent opens connections and accepts none, so no gateway leads to it." -}}
  {{- end -}}
  {{- if not $c.hosts.enrolment -}}
  {{- fail "coordinator.hosts.enrolment is needed with istio.enabled: the gateway has one port for everything and tells the two apart by the name." -}}
  {{- end -}}
  {{- if eq $c.hosts.enrolment $c.hosts.coordinator -}}
  {{- fail "coordinator.hosts.enrolment must be another name than coordinator.hosts.coordinator: the gateway tells the two apart by it." -}}
  {{- end -}}
  {{- range list $c.hosts.coordinator $c.hosts.enrolment $c.hosts.transfer -}}
    {{- if regexMatch "^[0-9]+(\\.[0-9]+){3}$" . -}}
    {{- fail "coordinator.hosts must be names and not addresses with istio.enabled: the gateway finds the way by the name in the TLS greeting, and there no address stands." -}}
    {{- end -}}
    {{- if and . (eq $i.api "istio") (not (contains "." .)) -}}
    {{- fail "coordinator.hosts must be whole names, with a dot, with istio.enabled: Istio takes no short name in a Gateway, and refuses it in the middle of an installation." -}}
    {{- end -}}
  {{- end -}}
  {{- if and (eq $i.api "gateway-api") (eq $i.mode "terminate") -}}
  {{- fail "istio.api gateway-api goes with istio.mode passthrough: what the gateway must say on about a node's certificate, only an EnvoyFilter on Istio's own Gateway can have it say." -}}
  {{- end -}}
  {{- if and (eq $i.api "gateway-api") (not $i.gateway.name) -}}
  {{- fail "istio.gateway.name is needed with istio.api gateway-api: the Gateway in istio.gateway.namespace, with a listener that passes TLS through, to which the TLSRoutes attach." -}}
  {{- end -}}
  {{- if and (eq $i.api "istio") $i.gateway.name -}}
  {{- fail "istio.gateway.name is for istio.api gateway-api: Istio's own Gateway finds its pods by istio.gateway.selector." -}}
  {{- end -}}
  {{- if and (eq $i.mode "terminate") (not $i.gateway.credentialName) -}}
  {{- fail "istio.gateway.credentialName is needed with istio.mode terminate: the Secret with the gateway's certificate, which `feddp coordinator gateway` issues." -}}
  {{- end -}}
  {{- if and (eq $i.mode "passthrough") $i.gateway.credentialName -}}
  {{- fail "istio.gateway.credentialName is for istio.mode terminate: a gateway that passes connections through holds no key." -}}
  {{- end -}}
  {{- if and $i.sidecar (eq $i.mode "terminate") -}}
  {{- fail "istio.sidecar goes with istio.mode passthrough: where the gateway ends TLS, port 8443 is HTTP/2 to Istio, and a sidecar would take the TLS that the gateway speaks there for plain HTTP/2." -}}
  {{- end -}}
  {{- if ne $c.service.type "ClusterIP" -}}
  {{- fail "coordinator.service.type must be ClusterIP with istio.enabled: another way in would go past the gateway." -}}
  {{- end -}}
{{- end -}}
{{- if $c.enabled -}}
  {{- if and .Values.monitoring.serviceMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.scrapers) -}}
  {{- fail "networkPolicy.scrapers is needed with monitoring.serviceMonitor.enabled: the default deny keeps Prometheus from what it is told to read, and CoordinatorDown would fire." -}}
  {{- end -}}
  {{- $labels := include "feddp.labels" (list . "coordinator") | fromYaml -}}
  {{- include "feddp.checkOwn" (list "monitoring.serviceMonitor.labels" .Values.monitoring.serviceMonitor.labels $labels) -}}
  {{- include "feddp.checkOwn" (list "monitoring.prometheusRule.labels" .Values.monitoring.prometheusRule.labels $labels) -}}
  {{- include "feddp.checkOwn" (list "monitoring.dashboards.labels" .Values.monitoring.dashboards.labels $labels) -}}
  {{- include "feddp.checkOwn" (list "coordinator.podAnnotations" $c.podAnnotations (include "feddp.coordinator.annotations" . | fromYaml)) -}}
{{- end -}}
{{- end -}}

{{/* That values set nothing that the chart sets itself: it would stand there twice. Takes a list: the value,
what it holds, and what the chart sets. */}}
{{- define "feddp.checkOwn" -}}
{{- $of := index . 0 -}}
{{- $own := index . 2 -}}
{{- range $name, $_ := index . 1 -}}
  {{- if hasKey $own $name -}}
  {{- fail (printf "%s must leave out %s: the chart sets it itself." $of $name) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/* Of a component's name and its resources; null takes one of them away. */}}
{{- define "feddp.checkResources" -}}
{{- $of := index . 0 -}}
{{- $requests := dig "requests" dict (index . 1) | default dict -}}
{{- $limits := dig "limits" dict (index . 1) | default dict -}}
{{- if and $requests.cpu $limits.cpu -}}
  {{- if gt (include "feddp.milli" $requests.cpu | float64) (include "feddp.milli" $limits.cpu | float64) -}}
  {{- fail (printf "%s.resources.limits.cpu must be as much as requests.cpu or more: Kubernetes makes no pod that reserves more than it may take." $of) -}}
  {{- end -}}
{{- end -}}
{{- if and $requests.memory $limits.memory -}}
  {{- if gt (include "feddp.mebi" $requests.memory | int64) (include "feddp.mebi" $limits.memory | int64) -}}
  {{- fail (printf "%s.resources.limits.memory must be as much as requests.memory or more: Kubernetes makes no pod that reserves more than it may take." $of) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
