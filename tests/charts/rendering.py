"""The chart as Helm's own engine renders it, and values that it is rendered with."""

import copy
import functools
from pathlib import Path
from typing import Any, Final

import helm_python
import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "charts/feddp"
RELEASE, NAMESPACE = "fed", "hospitals"
DIGEST: Final = "sha256:" + "a1" * 32

Values = dict[str, Any]
Object = dict[str, Any]

COORDINATOR: Final[Values] = {
    "coordinator": {
        "image": {"repository": "registry.example/feddp-coordinator", "digest": DIGEST},
        "hosts": {"coordinator": "feddp.example", "enrolment": "join.feddp.example"},
    }
}
ISTIO: Final[Values] = {"istio": {"enabled": True}}
TERMINATE: Final[Values] = {
    "istio": {
        "enabled": True,
        "mode": "terminate",
        "gateway": {"credentialName": "feddp-gateway"},
        "allowedSources": ["192.0.2.0/24", "2001:db8::/32"],
    }
}
CLIENTS: Final[Values] = {"networkPolicy": {"clients": [{"cidr": "192.0.2.0/24"}]}}
AGENT: Final[Values] = {
    "nodeAgent": {
        "enabled": True,
        "image": {"repository": "registry.example/feddp-agent", "digest": DIGEST},
        "joinToken": {"secretName": "feddp-token"},
        "stewardConfigMap": "feddp-steward",
    }
}
FULL_AGENT: Final[Values] = {
    "nodeAgent": {
        "records": [{"claim": "records", "path": "/srv/records"}],
        "tmpInMemory": True,
        "proxy": {"url": "http://proxy.example:3128", "credentialsSecret": "feddp-proxy"},
        "egress": {
            "ports": [3128],
            "peers": [{"cidr": "198.51.100.7/32"}],
            "databasePeers": [{"namespace": "omop", "podLabels": {"app": "postgres"}}],
        },
        "storage": {"existingClaim": "agent-folder"},
        "nodeSelector": {"records": "here"},
        "tolerations": [{"key": "records", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "hospital",
        "podAnnotations": {"note": "yes"},
    }
}
POSTGRESQL: Final[Values] = {
    "coordinator": {
        "database": {
            "kind": "postgresql",
            "urlSecret": {"name": "feddp-database"},
            "externalSecret": {
                "enabled": True,
                "store": {"name": "vault"},
                "remoteKey": "feddp/database",
                "remoteProperty": "url",
            },
            "peers": [{"namespace": "databases"}],
        },
        "serverCertificate": {
            "secretName": "feddp-server",
            "certManager": {"enabled": True, "issuer": {"name": "feddp-authority"}},
        },
        "storage": {"storageClass": "encrypted"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "important",
        "podAnnotations": {"note": "yes"},
    },
    "imagePullSecrets": ["registry"],
}
STORE: Final[Values] = {
    "coordinator": {
        "objectStore": {
            "url": "s3://feddp/models",
            "credentialsSecret": {"name": "feddp-store"},
        }
    }
}
REPLICAS: Final[Values] = {
    "coordinator": {
        "replicas": 3,
        "database": {"kind": "postgresql", "urlSecret": {"name": "feddp-database"}},
        "objectStore": {
            "url": "s3://feddp",
            "endpoint": "https://s3.example:8333",
            "credentialsSecret": {"name": "feddp-store"},
            "peers": [{"namespace": "storage"}],
            "port": 8333,
        },
        "installation": {"secretName": "feddp-installation"},
    }
}
TRANSFER: Final[Values] = {
    "coordinator": {
        "hosts": {"transfer": "transfer.feddp.example"},
        "autoscaling": {"enabled": True, "maxReplicas": 6},
    }
}
"""Goes with REPLICAS."""

BACKUP: Final[Values] = {
    "coordinator": {
        "backup": {
            "enabled": True,
            "claim": "feddp-backups",
            "passwordSecret": {"name": "feddp-backup"},
        }
    }
}
RESTORE: Final[Values] = {
    "coordinator": {
        "backup": {"claim": "feddp-backups", "passwordSecret": {"name": "feddp-backup"}},
        "restore": {
            "file": "feddp-20260101T000000Z.backup",
            "revocationsConfigMap": "feddp-revocations",
        },
    }
}
TOLD: Final[Values] = {
    "coordinator": {
        "config": {"monitoring": {"trace_endpoint": "https://collector.example:4317"}},
        "tracing": {
            "caConfigMap": {"name": "collector-ca"},
            "headersSecret": {"name": "collector"},
            "peers": [{"namespace": "observability"}],
        },
        "alertWebhook": {
            "urlSecret": {"name": "feddp-alerts"},
            "caConfigMap": {"name": "alerts-ca", "key": "bundle.pem"},
            "signingSecret": {"name": "feddp-alerts", "key": "signing"},
            "peers": [{"cidr": "198.51.100.9/32"}],
            "port": 8443,
        },
    }
}
GATEWAY_API: Final[Values] = {
    "istio": {
        "enabled": True,
        "api": "gateway-api",
        "gateway": {"name": "hospitals"},
        "allowedSources": ["192.0.2.0/24"],
    }
}
WATCHED: Final[Values] = {
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    }
}
DASHBOARDS: Final[Values] = {"monitoring": {"dashboards": {"enabled": True}}}
EXPOSED: Final[Values] = {
    "coordinator": {
        "service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
        "storage": {"existingClaim": "coordinator-folder"},
        "podDisruptionBudget": {"enabled": False},
    },
    "tests": {"enabled": False},
}


def merged(*parts: Values) -> Values:
    """Values over one another, the last one wins."""
    result: Values = {}
    for part in parts:
        _merge(result, copy.deepcopy(part))
    return result


def _merge(into: Values, part: Values) -> None:
    for name, value in part.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


MATRIX: Final[dict[str, Values]] = {
    "ten-lines": merged(COORDINATOR, ISTIO),
    "passthrough": merged(COORDINATOR, ISTIO, WATCHED, {"istio": {"sidecar": True}}),
    "terminate": merged(COORDINATOR, TERMINATE, WATCHED),
    "postgresql": merged(COORDINATOR, ISTIO, POSTGRESQL, WATCHED),
    "dashboards": merged(COORDINATOR, ISTIO, DASHBOARDS),
    "backup": merged(COORDINATOR, ISTIO, BACKUP),
    "backup-sidecar": merged(COORDINATOR, ISTIO, BACKUP, STORE, {"istio": {"sidecar": True}}),
    "restore": merged(COORDINATOR, ISTIO, RESTORE, {"istio": {"sidecar": True}}),
    "restore-replicas": merged(COORDINATOR, TERMINATE, REPLICAS, BACKUP, RESTORE),
    "told": merged(COORDINATOR, ISTIO, TOLD),
    "gateway-api": merged(COORDINATOR, GATEWAY_API),
    "object-store": merged(COORDINATOR, ISTIO, STORE),
    "replicas": merged(COORDINATOR, ISTIO, REPLICAS, WATCHED, {"istio": {"sidecar": True}}),
    "replicas-terminate": merged(COORDINATOR, TERMINATE, REPLICAS, BACKUP),
    "transfer": merged(
        COORDINATOR, ISTIO, REPLICAS, TRANSFER, WATCHED, {"istio": {"sidecar": True}}
    ),
    "transfer-terminate": merged(COORDINATOR, TERMINATE, REPLICAS, TRANSFER),
    "transfer-gateway-api": merged(COORDINATOR, GATEWAY_API, REPLICAS, TRANSFER),
    "transfer-without-istio": merged(COORDINATOR, CLIENTS, REPLICAS, TRANSFER),
    "without-istio": merged(COORDINATOR, CLIENTS, EXPOSED),
    "agent": merged({"coordinator": {"enabled": False}}, AGENT),
    "full-agent": merged({"coordinator": {"enabled": False}}, AGENT, FULL_AGENT),
    "everything": merged(
        COORDINATOR, TERMINATE, POSTGRESQL, REPLICAS, BACKUP, TOLD, WATCHED, AGENT, FULL_AGENT
    ),
}


def render(values: Values, chart: Path = CHART, *, namespace: str = NAMESPACE) -> dict[str, str]:
    """Template's path within the chart -> what Helm makes of it."""
    if chart == CHART:
        made = _shipped().render(values=values, name=RELEASE, namespace=namespace)
    else:
        with helm_python.Chart.load(chart) as loaded:
            made = loaded.render(values=values, name=RELEASE, namespace=namespace)
    return {name.partition("/")[2]: text for name, text in made.items()}


@functools.cache
def _shipped() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def objects(values: Values, chart: Path = CHART, *, namespace: str = NAMESPACE) -> list[Object]:
    """Every object of the cluster that the chart makes."""
    return [
        one
        for name, text in render(values, chart, namespace=namespace).items()
        if name.endswith(".yaml")
        for one in _read(text)
        if one
    ]


def _read(text: str) -> list[Object]:
    for node in yaml.compose_all(text, Loader=yaml.CSafeLoader):
        _refuse_repeated(node)
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def _refuse_repeated(node: yaml.Node | None) -> None:
    """A key that stands there twice, of which the last would win, or a server refuse both."""
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _refuse_repeated(one)
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        assert len(names) == len(set(names)), f"repeated key among {names}"
        for _, one in node.value:
            _refuse_repeated(one)


@functools.cache
def _rendered(case: str) -> list[Object]:
    return objects(MATRIX[case])


def of(case: str) -> list[Object]:
    """The objects of one case of the matrix, the caller's own copy."""
    return copy.deepcopy(_rendered(case))


def named(found: list[Object], kind: str, name: str = "") -> Object:
    """The one object of a kind, or of a kind and a name."""
    (one,) = [
        each
        for each in found
        if each["kind"] == kind and (not name or each["metadata"]["name"] == name)
    ]
    return one
