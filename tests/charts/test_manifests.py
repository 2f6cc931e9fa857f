"""What the chart renders is what Kubernetes and the operators beside it take."""

import copy

import helm_python
import kubernetes_validate
import pytest

from tests.charts import custom_resources
from tests.charts.rendering import CHART, MATRIX, NAMESPACE, named, of

KUBERNETES = ("1.30", "1.34", "1.37")


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("case", MATRIX)
def test_every_object_is_one_by_kubernetes_own_schema(case: str, version: str) -> None:
    """Strictly, for the oldest version that the chart takes, a later and the newest one."""
    own = [one for one in of(case) if not custom_resources.is_custom(one)]
    assert own
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_a_misspelt_field_of_an_object_is_found(version: str) -> None:
    """Else the check above would be none."""
    wrong = named(of("ten-lines"), "StatefulSet")
    wrong["spec"]["template"]["spec"]["terminationGraceperiodSeconds"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("case", MATRIX)
def test_every_custom_resource_is_one_by_its_definition(case: str) -> None:
    """Istio's, the Prometheus operator's, cert-manager's and External Secrets', nothing unknown."""
    for one in of(case):
        if custom_resources.is_custom(one):
            assert custom_resources.faults(one) == [], one["kind"]


def test_the_matrix_holds_every_kind_that_has_a_definition() -> None:
    """So that no schema lies here unused, and no template goes unchecked for want of a case."""
    kinds = {one["kind"] for case in MATRIX for one in of(case) if custom_resources.is_custom(one)}
    assert kinds == {path.stem for path in custom_resources.FOLDER.glob("*.json")}


@pytest.mark.parametrize("kind", [path.stem for path in custom_resources.FOLDER.glob("*.json")])
def test_a_misspelt_field_of_a_custom_resource_is_found(kind: str) -> None:
    """A cluster would drop it without a word."""
    one = next(one for case in MATRIX for one in of(case) if one["kind"] == kind)
    wrong = copy.deepcopy(one)
    wrong["spec"]["sellector"] = {}
    assert custom_resources.faults(wrong)
    older = {**one, "apiVersion": one["apiVersion"].rpartition("/")[0] + "/v1beta1"}
    assert custom_resources.faults(older)


def test_a_misspelt_time_out_deep_in_a_destination_rule_is_found() -> None:
    """Fields are closed at every depth."""
    rule = named(of("ten-lines"), "DestinationRule", "fed-feddp-coordinator")
    assert custom_resources.faults(rule) == []
    rule["spec"]["trafficPolicy"]["connectionPool"]["tcp"]["idleTimeOut"] = "1s"
    assert custom_resources.faults(rule)


@pytest.mark.parametrize("case", MATRIX)
def test_helm_lint_finds_nothing(case: str) -> None:
    """But for the icon that the chart does not have."""
    report = helm_python.lint(CHART, MATRIX[case], strict=True, namespace=NAMESPACE)
    assert report["errors"] == []
    assert [one["error"] for one in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("case", MATRIX)
def test_no_two_objects_have_one_name(case: str) -> None:
    """The second would silently take the place of the first."""
    keys = [
        (one["apiVersion"], one["kind"], one["metadata"]["namespace"], one["metadata"]["name"])
        for one in of(case)
    ]
    assert len(keys) == len(set(keys))
