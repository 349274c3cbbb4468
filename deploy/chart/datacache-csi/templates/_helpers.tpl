{{- define "datacache-csi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "datacache-csi.fullname" -}}
{{- $name := include "datacache-csi.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What selects the pods of one component: (list $ "node"). */}}
{{- define "datacache-csi.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "datacache-csi.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of an object of one component. */}}
{{- define "datacache-csi.labels" -}}
{{- $root := index . 0 -}}
{{ include "datacache-csi.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The name of a component's service account: (list $ "node"). */}}
{{- define "datacache-csi.serviceAccountName" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}
{{- $account := (index $root.Values $component).serviceAccount }}
{{- if $account.create }}
{{- default (printf "%s-%s" (include "datacache-csi.fullname" $root) $component) $account.name }}
{{- else }}
{{- default "default" $account.name }}
{{- end }}
{{- end }}

{{/* The whole name of an image: (list $ .Values.image). */}}
{{- define "datacache-csi.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- with default $root.Values.registry $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- define "datacache-csi.pluginDir" -}}
{{ .Values.kubeletDir }}/plugins/{{ .Values.driverName }}
{{- end }}

{{/* The flags that both programs have. */}}
{{- define "datacache-csi.commonArgs" -}}
- --driver-name={{ .Values.driverName }}
- --registry=kubernetes
- --log-format={{ .Values.logFormat }}
- --log-level={{ .Values.logLevel }}
{{- with .Values.allowOrigins }}
- --allow-origins={{ join "," . }}
{{- end }}
{{- with .Values.allowInlineNas }}
- --allow-inline-nas={{ join "," . }}
{{- end }}
{{- if .Values.metrics.enabled }}
- --metrics-address=[$(POD_IP)]:{{ .Values.metrics.port }}
{{- end }}
{{- end }}

{{/* The environment that both programs have; the component's own follows: (list $ .Values.node). */}}
{{- define "datacache-csi.env" -}}
{{- $root := index . 0 }}{{ $values := $root.Values -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
# What libraries would write into a home folder goes here.
- name: HOME
  value: /tmp
{{- range $name, $value := dict "HF_ENDPOINT" $values.hfEndpoint "MODELSCOPE_ENDPOINT" $values.modelscopeEndpoint "HTTP_PROXY" $values.proxy.httpProxy "HTTPS_PROXY" $values.proxy.httpsProxy "NO_PROXY" $values.proxy.noProxy }}
{{- if contains "@" $value }}
{{- fail (printf "the value for %s has a login in its URL; put the URL into a Secret and name that in extraEnv, as values.yaml shows" $name) }}
{{- end }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- if $values.caBundle.configMap }}
{{- range list "REQUESTS_CA_BUNDLE" "SSL_CERT_FILE" }}
- name: {{ . }}
  value: /etc/datacache/ca/{{ $values.caBundle.key }}
{{- end }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- with (index . 1).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* kubelet's probes of a program that answers on `port`. */}}
{{- define "datacache-csi.probes" -}}
# Before it is ready, the plugin recovers its mounts, its store and unfinished fills.
startupProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 15
  timeoutSeconds: 10
  failureThreshold: 5
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{/* Of a container that needs nothing of the node. */}}
{{- define "datacache-csi.tightSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The lease of a sidecar for a driver: a letter of its name that no label has becomes a dash. */}}
{{- define "datacache-csi.leaseName" -}}
{{- regexReplaceAll "[^a-zA-Z0-9-]" . "-" }}
{{- end }}

{{/* What both sidecars of the controller have, from `env` on: (dict "port" ... "name" ... "resources" ...). */}}
{{- define "datacache-csi.sidecar" -}}
env:
  - name: POD_NAMESPACE
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
ports:
  - {name: {{ .name }}, containerPort: {{ .port }}}
livenessProbe:
  httpGet: {path: /healthz/leader-election, port: {{ .port }}}
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 3
securityContext:
  {{- include "datacache-csi.tightSecurityContext" . | nindent 2 }}
resources:
  {{- toYaml .resources | nindent 2 }}
volumeMounts:
  - {name: socket, mountPath: /csi}
{{- end }}


{{/* The image store: flags, mounts and volumes of those who use it. */}}
{{- define "datacache-csi.imageStoreArgs" -}}
{{- with .Values.imageStore }}
{{- if .url }}
- --image-store={{ .url }}
{{- if .secret }}
- --image-store-secret=/etc/datacache/image-store
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "datacache-csi.imageStoreMounts" -}}
{{- with .Values.imageStore }}
{{- if and .url .secret }}
- {name: image-store-secret, mountPath: /etc/datacache/image-store, readOnly: true}
{{- end }}
{{- if and .url .volume }}
- {name: image-store, mountPath: {{ trimPrefix "file://" .url }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "datacache-csi.imageStoreVolumes" -}}
{{- with .Values.imageStore }}
{{- if and .url .secret }}
- name: image-store-secret
  secret: {secretName: {{ .secret }}, defaultMode: 0440}
{{- end }}
{{- if and .url .volume }}
{{- if not (hasPrefix "file://" .url) }}
{{- fail "imageStore.volume is for a file:// URL, which names the folder that it is mounted at; remove it" }}
{{- end }}
- name: image-store
  {{- toYaml .volume | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}


{{/* Other places' image stores, for the operator: flags, mounts and volumes. */}}
{{- define "datacache-csi.copyRegionArgs" -}}
{{- if and .Values.operator.copyRegions (not .Values.imageStore.url) }}
{{- fail "operator.copyRegions copies from the cluster's own image store, and there is none; set imageStore.url" }}
{{- end }}
{{- range .Values.operator.copyRegions }}
- --copy-region={{ .region }}={{ .url }}
{{- if .secret }}
- --copy-region-secret={{ .region }}=/etc/datacache/copy-regions/{{ .region }}
{{- end }}
{{- end }}
{{- end }}

{{- define "datacache-csi.copyRegionMounts" -}}
{{- range .Values.operator.copyRegions }}
{{- if .secret }}
- {name: copy-secret-{{ .region }}, mountPath: /etc/datacache/copy-regions/{{ .region }}, readOnly: true}
{{- end }}
{{- if .volume }}
- {name: copy-store-{{ .region }}, mountPath: {{ trimPrefix "file://" .url }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "datacache-csi.copyRegionVolumes" -}}
{{- range .Values.operator.copyRegions }}
{{- if .secret }}
- name: copy-secret-{{ .region }}
  secret: {secretName: {{ .secret }}, defaultMode: 0440}
{{- end }}
{{- if .volume }}
{{- if not (hasPrefix "file://" .url) }}
{{- fail (printf "operator.copyRegions: the volume of %s is for a file:// URL, which names the folder that it is mounted at; remove it" .region) }}
{{- end }}
- name: copy-store-{{ .region }}
  {{- toYaml .volume | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
