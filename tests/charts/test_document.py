"""docs/helm.md and the notes after an installation: what they show works as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import helm_python
import pytest
import yaml

from tests.charts import custom_resources
from tests.charts.rendering import (
    CHART,
    COORDINATOR,
    ISTIO,
    MATRIX,
    NAMESPACE,
    ROOT,
    Values,
    merged,
    named,
    objects,
    of,
    render,
)

TEXT = (ROOT / "docs/helm.md").read_text()
SHOWN: list[str] = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
EXAMPLES = [one for one in SHOWN if not one.startswith("apiVersion:")]


def commands(text: str) -> set[tuple[str, ...]]:
    """Every `feddp ...` command in a text, without its options' values."""
    found = set()
    for line in re.findall(r"(?:^| |`)feddp ((?:coordinator|node|agent|budget|job) [^`\n]*)", text):
        words = shlex.split(line)
        noun = []
        for word in words:
            if not re.fullmatch(r"[a-z][a-z-]*", word):
                break
            noun.append(word)
        options = [word for word in words if word.startswith("--")]
        found.add((*noun, *options))
    return found


def test_each_example_of_the_document_is_taken() -> None:
    """The first is a whole file; the others are over it, or a release of their own; a restore is
    over what makes backups."""
    first, *others = [yaml.safe_load(one) for one in EXAMPLES]
    assert len(others) == 8
    assert len(EXAMPLES[0].splitlines()) == 9
    base: Values = merged(first)
    (backup,) = [one for one in others if "backup" in one.get("coordinator", {})]
    (restore,) = [one for one in others if "restore" in one.get("coordinator", {})]
    others.remove(restore)
    (several,) = [one for one in others if "installation" in one.get("coordinator", {})]
    with_restore = merged(base, backup, restore)
    alone = [
        merged(
            base, several if "transfer" in one.get("coordinator", {}).get("hosts", {}) else {}, one
        )
        for one in others
        if "nodeAgent" not in one
    ]
    for values in (base, with_restore, *alone):
        assert objects(values)
    (agent,) = [one for one in others if "nodeAgent" in one]
    kinds = [one["kind"] for one in objects(agent)]
    assert kinds.count("StatefulSet") == 1


def test_the_gateway_of_the_document_takes_what_the_chart_attaches() -> None:
    """Of the name and namespace of the routes, with a listener for their port that passes TLS
    through and takes routes of the release's namespace; by the Gateway API's own definition."""
    (gateway,) = [yaml.safe_load(one) for one in SHOWN if one.startswith("apiVersion:")]
    assert custom_resources.faults(gateway) == []
    (values,) = [yaml.safe_load(one) for one in EXAMPLES if "gateway-api" in one]
    found = objects(merged(COORDINATOR, values))
    routes = [one for one in found if one["kind"] == "TLSRoute"]
    assert len(routes) == 2
    (listener,) = gateway["spec"]["listeners"]
    for route in routes:
        (parent,) = route["spec"]["parentRefs"]
        wanted = {**gateway["metadata"], "kind": gateway["kind"], "port": listener["port"]}
        assert wanted.items() <= parent.items()
        assert route["apiVersion"] == gateway["apiVersion"]
    assert (listener["protocol"], listener["tls"]) == ("TLS", {"mode": "Passthrough"})
    allowed = listener["allowedRoutes"]["namespaces"]["selector"]["matchLabels"]
    assert allowed == {"kubernetes.io/metadata.name": NAMESPACE}


def test_the_first_backup_of_document_and_notes_is_the_charts_own() -> None:
    """The CronJob, the container and the Secrets that are named are those of the release."""
    notes = render(MATRIX["backup"])["templates/NOTES.txt"]
    job = named(of("backup"), "CronJob")
    name = job["metadata"]["name"]
    spec = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert f"--from=cronjob/{name} " in TEXT
    assert f"--from=cronjob/{name} {name}-first" in notes
    assert f"logs -f job/{name}-first -c {spec['containers'][0]['name']}" in notes
    (values,) = [yaml.safe_load(one) for one in EXAMPLES if "claim: feddp-backups" in one]
    shown = named(objects(merged(COORDINATOR, ISTIO, values)), "CronJob")
    volumes = shown["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    (secret,) = [one["secret"] for one in volumes if "secret" in one]
    assert f"create secret generic {secret['secretName']} --from-file=password" in TEXT
    assert secret["items"] == [{"key": "password", "path": "password"}]
    assert "Back up the volume" not in notes
    assert "coordinator.backup.enabled" in render(MATRIX["ten-lines"])["templates/NOTES.txt"]


def test_the_restore_of_the_document_is_the_charts_own() -> None:
    """Its values make a Job over those of the backup; labels, containers, names and the folder that
    are named are the release's."""
    parts = [
        yaml.safe_load(one)
        for one in EXAMPLES
        if "claim: feddp-backups" in one or "file: feddp-" in one
    ]
    found = objects(merged(COORDINATOR, ISTIO, *parts))
    job, stateful = named(found, "Job"), named(found, "StatefulSet")
    labels = job["spec"]["template"]["metadata"]["labels"]
    told = re.findall(r"-l (app\S+)", TEXT)
    components = {one.rpartition("=")[2] for one in told}
    assert components == {labels["app.kubernetes.io/component"], "coordinator"}
    assert all("app.kubernetes.io/instance=fed," in one for one in told)
    assert labels["app.kubernetes.io/instance"] == "fed"
    assert stateful["spec"]["replicas"] == 0
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert f"-c {container['name']}\n" in TEXT
    assert re.sub(r"\d+$", "REVISION", job["metadata"]["name"]) in TEXT
    volumes = job["spec"]["template"]["spec"]["volumes"]
    (config_map,) = [one["configMap"]["name"] for one in volumes if one["name"] == "revocations"]
    assert f"create configmap {config_map} --from-file=replica-0" in TEXT
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert re.sub(r"\d+$", "REVISION", environment["BEFORE"]) in TEXT
    assert environment["FOLDER"] == f"{NAMESPACE}-fed-feddp"
    notes = render(MATRIX["restore"])["templates/NOTES.txt"]
    assert f"logs -f job/{job['metadata']['name']} -c {container['name']}\n" in notes
    assert "restored" not in render(MATRIX["backup"])["templates/NOTES.txt"]


def test_there_is_no_autoscaler_without_transfer_and_the_document_says_why() -> None:
    """One that adds pods that stand by would only look like capacity."""
    for case in MATRIX:
        kinds = {one["kind"] for one in of(case)}
        assert ("HorizontalPodAutoscaler" in kinds) == case.startswith("transfer"), case
    assert "Without it\n  nothing is gained by a HorizontalPodAutoscaler" in TEXT
    assert "**They carry no more than one does**, but" in TEXT


def test_several_coordinators_of_the_document_get_what_its_commands_make() -> None:
    """The Secrets by their names and keys, and the names that `init` was given; the key of the URL
    is the values' default."""
    first, several = (
        yaml.safe_load(one) for one in EXAMPLES if "replicas" in one or one is EXAMPLES[0]
    )
    found = objects(merged(first, several))
    made = dict(re.findall(r"create secret generic (feddp-[a-z]+) (\S+)", TEXT))
    section = TEXT[TEXT.index("## Several coordinators") : TEXT.index("## Istio")]
    assert {"feddp-database", "feddp-store", "feddp-installation"} <= made.keys()
    spec = named(found, "StatefulSet")["spec"]["template"]["spec"]
    (volume,) = [one["secret"] for one in spec["volumes"] if "secret" in one]
    assert volume["secretName"] == "feddp-installation"
    keys = {
        (reference["name"], reference["key"])
        for one in spec["containers"][0]["env"]
        if (reference := one.get("valueFrom", {}).get("secretKeyRef"))
    }
    assert {name for name, _ in keys} == {"feddp-database", "feddp-store"}
    assert ("feddp-database", made["feddp-database"].split("=")[1]) in keys
    for name, key in keys - {("feddp-database", "url")}:
        assert (name, f"`{key}=`" in section) == ("feddp-store", True)
    (line,) = [one for one in section.splitlines() if "coordinator init" in one]
    shown = shlex.split(line)[1:]
    install = {one["name"]: one.get("value") for one in spec["initContainers"][0]["env"]}
    options = dict(zip(shown[3::2], shown[4::2], strict=True))
    assert (options["--host"], options["--enrollment-host"], options["--trust-domain"]) == (
        install["HOST"],
        install["ENROLMENT_HOST"],
        install["TRUST_DOMAIN"],
    )
    config = named(found, "ConfigMap")["data"]["coordinator.yaml"]
    assert yaml.safe_load(config)["server"]["public_port"] == int(options["--port"])


@pytest.mark.parametrize(
    ("case", "on_the_volume"),
    [
        ("ten-lines", "the authority's keys, the ledger, the models"),
        ("postgresql", "the authority's keys, the models"),
        ("object-store", "the authority's keys, the ledger"),
        ("replicas", ""),
    ],
)
def test_the_notes_say_what_lies_on_the_volume_alone(case: str, on_the_volume: str) -> None:
    """And where the operator's profile is: made by the pod, or before by the operator."""
    notes = render(MATRIX[case])["templates/NOTES.txt"]
    assert (f"on it alone: {on_the_volume}." in notes) == bool(on_the_volume)
    assert ("nothing is on the volumes alone" in notes) == (not on_the_volume)
    assert ("-cf - operator" in notes) == bool(on_the_volume)


@pytest.mark.parametrize("case", [*MATRIX, "document"])
def test_each_feddp_command_that_is_shown_exists(case: str) -> None:
    """With the options that are shown, by the command's own help."""
    text = TEXT if case == "document" else render(MATRIX[case])["templates/NOTES.txt"]
    shown = commands(text)
    assert shown
    for command in shown:
        words = [word for word in command if not word.startswith("--")]
        said = subprocess.run(
            [sys.executable, "-m", "feddp", *words, "--help"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert said.returncode == 0, words
        assert f"feddp {' '.join(words)} " in said.stdout
        for option in command[len(words) :]:
            assert option in said.stdout, command


def test_the_notes_name_what_is_there() -> None:
    """Pods, containers and Secrets of the release, and the port that nodes dial."""
    notes = render(MATRIX["terminate"])["templates/NOTES.txt"]
    stateful = named(of("terminate"), "StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    containers = {one["name"] for one in [*pod["initContainers"], *pod["containers"]]}
    assert set(re.findall(r" -c ([a-z]+)", notes)) <= containers
    assert set(re.findall(r"(\S+)-0 ", notes)) == {stateful["metadata"]["name"]}
    assert set(re.findall(r"kubectl -n (\S+)", notes)) == {NAMESPACE, "istio-ingress"}
    assert "feddp.example:443" in notes
    assert "create secret generic feddp-gateway" in notes
    assert "feddp-gateway" not in render(MATRIX["ten-lines"])["templates/NOTES.txt"]
    assert "feddp.example:8443" in render(MATRIX["without-istio"])["templates/NOTES.txt"]


def test_what_the_notes_make_is_what_the_gateways_secret_needs(tmp_path: Path) -> None:
    """`feddp coordinator gateway` writes the three files that the notes put into it."""
    from coordinator.gateway import certificate as gateway_certificate
    from coordinator.installation import init

    init(tmp_path / "c", "test.example", host="feddp.example")
    gateway_certificate.issue(tmp_path / "c", ["feddp.example"], tmp_path / "gateway")
    notes = render(MATRIX["terminate"])["templates/NOTES.txt"]
    files = dict(re.findall(r"--from-file=(\S+)=(\S+)", notes))
    assert files.keys() == {"tls.crt", "tls.key", "ca.crt"}
    for path in files.values():
        assert (tmp_path / path).is_file(), path


def test_a_labels_default_is_dropped_by_null() -> None:
    """As the document says of the gateway's labels, which Helm merges."""
    selector = {"istio": None, "app": "gateway"}
    found = objects(merged(COORDINATOR, ISTIO, {"istio": {"gateway": {"selector": selector}}}))
    assert named(found, "Gateway")["spec"]["selector"] == {"app": "gateway"}


def test_the_chart_is_whole_without_a_network(tmp_path: Path) -> None:
    """Packed, it has no dependency, names no registry of images, and renders the same."""
    archive = helm_python.package(CHART, destination=tmp_path)
    with helm_python.Chart.load(archive) as packed:
        assert packed.dependencies == []
        assert "dependencies" not in packed.metadata
        made = packed.render(values=MATRIX["everything"], name="fed", namespace=NAMESPACE)
    assert {name.partition("/")[2]: text for name, text in made.items()} == render(
        MATRIX["everything"]
    )
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["coordinator"]["image"]["repository"] == ""
    assert values["nodeAgent"]["image"]["repository"] == ""
