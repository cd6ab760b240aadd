"""Make the templates of the Helm chart from the manifests: what differs is where a value stands instead of a word."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "kubernetes"
TEMPLATES = ROOT / "charts/lxcfs-py/templates"

_CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: lxcfs-py
  namespace: {{ .Release.Namespace | quote }}
data:
  lxcfs.toml: |2
{{ .Values.config | indent 4 }}
"""

_IMAGE = '"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"'
_VALUES = {
    "namespace: lxcfs-py\n": "namespace: {{ .Release.Namespace | quote }}\n",
    "[kube-system, lxcfs-py]": "[kube-system, {{ .Release.Namespace | quote }}]",
    "lxcfs-py-webhook.lxcfs-py.svc": "lxcfs-py-webhook.{{ .Release.Namespace }}.svc",
    "image: lxcfs-py\n": f"image: {_IMAGE}\n",
    "imagePullPolicy: IfNotPresent": "imagePullPolicy: {{ .Values.image.pullPolicy }}",
    "replicas: 2": "replicas: {{ .Values.webhook.replicas }}",
    # Another configuration is a rollout.
    "  template:\n    metadata:\n": (
        "  template:\n    metadata:\n      annotations:\n        checksum/config: {{ .Values.config | sha256sum }}\n"
    ),
}


class Template(NamedTuple):
    """A file of the chart."""

    name: str
    make: Callable[[], str]


def _of(manifests: str, condition: str = "") -> str:
    """Return the manifests that match a pattern, one after the other, wanted if a value is true."""
    text = "---\n".join(path.read_text() for path in sorted(MANIFESTS.glob(manifests)))
    for word, value in _VALUES.items():
        text = text.replace(word, value)
    return f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n" if condition else text


def templates() -> Iterator[Template]:
    """Yield all files that are made."""
    yield Template("configmap.yaml", lambda: _CONFIG_MAP)
    for name in ("daemonset", "networkpolicy", "resourcequota"):
        yield Template(f"{name}.yaml", partial(_of, f"base/{name}.yaml"))
    yield Template("webhook.yaml", partial(_of, "components/webhook/[!k]*.yaml", ".Values.webhook.enabled"))
    monitored = ".Values.podMonitor.enabled"
    yield Template("podmonitor.yaml", partial(_of, "components/podmonitor/podmonitor.yaml", monitored))
    both = f"and {monitored} .Values.webhook.enabled"
    yield Template("podmonitor-webhook.yaml", partial(_of, "components/podmonitor/webhook.yaml", both))


def stale() -> list[Path]:
    """Return the files that are not what would be made."""
    return [
        TEMPLATES / each.name
        for each in templates()
        if not (TEMPLATES / each.name).exists() or (TEMPLATES / each.name).read_text() != each.make()
    ]


def write() -> None:
    """Make all files."""
    TEMPLATES.mkdir(parents=True, exist_ok=True)
    for each in templates():
        (TEMPLATES / each.name).write_text(each.make())
