"""The examples under config/sources, run on made-up records."""

import csv
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

from benchmarks.postgresql import PostgreSql
from node_agent.data.datasets import load_data_sets
from node_agent.data.headers import check_header
from node_agent.data.records import read_records
from node_agent.tasks.tabular_config import Feature

EXAMPLES = Path(__file__).resolve().parents[3] / "config" / "sources"
PASSWORD = "made-up"
OMOP = """
CREATE TABLE person (person_id int, gender_concept_id int, year_of_birth int);
CREATE TABLE measurement (person_id int, measurement_concept_id int, unit_concept_id int,
                          value_as_number numeric);
CREATE TABLE visit_occurrence (visit_occurrence_id int, person_id int);
CREATE TABLE condition_occurrence (person_id int, condition_concept_id int);
CREATE TABLE concept_ancestor (ancestor_concept_id int, descendant_concept_id int);
CREATE TABLE observation (person_id int, observation_concept_id int, value_as_string text);
INSERT INTO concept_ancestor VALUES (4329847, 4329847), (4329847, 312327), (201826, 201826);
INSERT INTO person SELECT n, CASE n % 2 WHEN 0 THEN 8507 ELSE 8532 END, 1950 + n
  FROM generate_series(1, 8) AS n;
INSERT INTO person VALUES (9, 8507, 2015);                    -- a child
INSERT INTO measurement SELECT n, 3004249, 8876, 110 + n FROM generate_series(1, 9) AS n;
INSERT INTO measurement VALUES (1, 3004249, 8876, 121), (2, 3004249, 8876, 9999), (1, 1, 8876, 50);
DELETE FROM measurement WHERE person_id = 8;                  -- nobody measured this one
INSERT INTO visit_occurrence VALUES (1, 1), (2, 1), (3, 2);
INSERT INTO condition_occurrence VALUES (1, 312327), (1, 4329847), (2, 201826), (3, 4329847);
INSERT INTO observation SELECT n, 2000000001, 'yes' FROM generate_series(1, 9) AS n WHERE n <> 4;
INSERT INTO observation VALUES (5, 2000000001, 'withdrawn');
CREATE ROLE feddp_reader LOGIN PASSWORD 'made-up';
GRANT SELECT ON ALL TABLES IN SCHEMA public TO feddp_reader;
"""
"""Nine people: 4 never agreed, 5 withdrew, 6 opted out, 8 was not measured, 9 is a child."""


def test_the_omop_example_reads_a_cdm_database(
    tmp_path: Path, postgresql_server: PostgreSql
) -> None:
    """The query and the declaration as they stand, but for the server's address."""
    name = postgresql_server.new_database().rpartition("/")[2]
    postgresql_server.superuser(OMOP, name)
    shutil.copy(EXAMPLES / "omop-cdm.sql", tmp_path)
    declared = yaml.safe_load((EXAMPLES / "omop-cdm.datasets.yaml").read_text())
    [one] = declared["data_sets"]
    one["database"]["url"] = (
        f"postgresql+psycopg://feddp_reader@127.0.0.1:{postgresql_server.port}/{name}"
    )
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(declared))
    (tmp_path / one["database"]["password_file"]).write_text(PASSWORD)
    (tmp_path / one["opt_out"]).write_text("6\n")
    [spec] = load_data_sets(tmp_path)
    check_header(spec)
    features = [
        Feature(column="age", center=70.0, scale=10.0),
        Feature(column="sex", category="male", center=0.0, scale=1.0),
        Feature(column="systolic", center=110.0, scale=10.0),
        Feature(column="visits", center=0.0, scale=1.0),
    ]
    with capture_logs() as logs:
        records = read_records(spec, features)
    # Of persons 1, 2, 3 and 7.
    of_persons = [[0.4, 0, 0.6, 2], [0.3, 1, 0.2, 1], [0.2, 0, 0.3, 0], [-0.2, 0, 0.7, 0]]
    assert np.allclose(records.features, of_persons)
    assert records.labels.tolist() == [1, 0, 1, 0]
    assert records.patients.tolist() == [0, 1, 2, 3]
    assert logs[0]["without_consent"] == 2
    assert logs[0]["opted_out"] == 1


def observation(patient: str, value: float, *, parts: bool = False, **change: Any) -> Any:
    """A systolic pressure, alone or as a part of a whole blood pressure."""
    systolic = {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]}
    quantity = {"value": value, "unit": "mmHg", "code": "mm[Hg]"}
    measured = {"code": systolic, "valueQuantity": quantity}
    whole = {"coding": [{"system": "http://loinc.org", "code": "85354-9"}]}
    return {
        "resourceType": "Observation",
        "status": "final",
        "subject": {"reference": f"Patient/{patient}"},
        **({"code": whole, "component": [measured]} if parts else measured),
        **change,
    }


def condition(patient: str, system: str, code: str, status: str = "confirmed") -> Any:
    """A diagnosis."""
    return {
        "resourceType": "Condition",
        "subject": {"reference": f"https://fhir.hospital.example/Patient/{patient}"},
        "code": {"coding": [{"system": system, "code": code}]},
        "verificationStatus": {"coding": [{"code": status}]},
    }


def consent(patient: str, provision: str, status: str = "active") -> Any:
    """What a patient said about research."""
    return {
        "resourceType": "Consent",
        "status": status,
        "scope": {"coding": [{"code": "research"}]},
        "patient": {"reference": f"Patient/{patient}"},
        "provision": {"type": provision},
    }


ICD_10, SNOMED = "http://hl7.org/fhir/sid/icd-10-cm", "http://snomed.info/sct"
EXPORT = {
    "Patient": [
        *(
            {"resourceType": "Patient", "id": name, "birthDate": born, "gender": gender}
            for name, born, gender in [
                ("a", "1955-03-01", "male"),
                ("b", "1965", "female"),
                ("c", "1975-01", "male"),
                ("d", "1985-01-01", "female"),
                ("e", "1995-01-01", "male"),
                ("f", "1945-01-01", "female"),
            ]
        ),
        {"resourceType": "Patient", "id": "g"},
    ],
    "Observation.000": [
        *(observation(name, 120.0) for name in "abcdeg"),
        observation("a", 130.0, parts=True),
        observation("a", 999.0, status="entered-in-error"),
    ],
    "Observation.001": [observation("b", 16.0, valueQuantity={"value": 16.0, "code": "kPa"})],
    "Condition": [
        condition("a", ICD_10, "I21.4"),
        condition("b", SNOMED, "22298006", "refuted"),
        condition("c", SNOMED, "22298006"),
        condition("d", ICD_10, "I10"),
    ],
    "Consent": [
        *(consent(name, "permit") for name in "abcd"),
        consent("d", "deny"),
        consent("e", "permit", "inactive"),
    ],
}
"""Of seven patients: d and e do not agree, f was not measured, g has no birth date."""


def test_the_fhir_example_reads_a_bulk_export(tmp_path: Path) -> None:
    """Run as its text says, on NDJSON as a server writes it, then read as its declaration says."""
    export = tmp_path / "export"
    export.mkdir()
    for name, found in EXPORT.items():
        lines = "".join(json.dumps(one) + "\n" for one in found)
        (export / f"{name}.ndjson").write_text(lines)
    command = [sys.executable, str(EXAMPLES / "fhir_export.py"), str(export)]
    shutil.copy(EXAMPLES / "fhir-export.datasets.yaml", tmp_path / "datasets.yaml")
    out = tmp_path / "records.csv"
    done = subprocess.run([*command, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout == "5 patients\n"
    assert out.stat().st_mode & 0o777 == 0o600
    (tmp_path / "opt-out.txt").write_text("b\n")
    [spec] = load_data_sets(tmp_path)
    check_header(spec)
    features = [
        Feature(column="age", center=50.0, scale=10.0),
        Feature(column="systolic", center=120.0, scale=10.0),
    ]
    with capture_logs() as logs:
        records = read_records(spec, features)
    # Of a, with the mean of 120 and 130, and of c.
    assert np.allclose(records.features, [[2.0, 0.5], [0.0, 0.0]])
    assert records.labels.tolist() == [1, 1]
    assert (logs[0]["without_consent"], logs[0]["opted_out"]) == (2, 1)


@pytest.mark.parametrize(
    ("line", "what"), [('{"s3cret": ', "not JSON"), ('["s3cret"]', "no resource")]
)
def test_the_fhir_example_stops_at_a_line_that_it_cannot_read(
    tmp_path: Path, line: str, what: str
) -> None:
    """Named by its number; what stood there before stays as it was."""
    (tmp_path / "Patient.ndjson").write_text(f'{{"resourceType": "Patient"}}\n{line}\n')
    out = tmp_path / "records.csv"
    out.write_text("before")
    command = [sys.executable, str(EXAMPLES / "fhir_export.py"), str(tmp_path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"line 2 is {what}" in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == "before"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["Patient.ndjson", "records.csv"]


@pytest.mark.parametrize(
    ("reference", "consent"),
    [("Patient/1/_history/2", {"1": "no", "2": "yes"}), ("Patient/2", {"1": "yes", "2": "no"})],
)
def test_the_fhir_example_reads_references_to_versions(
    tmp_path: Path, reference: str, consent: dict[str, str]
) -> None:
    """Of the patient that they name, and of nobody whose id is the version's number."""
    research = {"coding": [{"code": "research"}]}
    write = partial(_write_ndjson, tmp_path)
    write("Patient", [{"id": one, "birthDate": "1950-01-01"} for one in "12"])
    systolic = {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]}
    measured = {
        "status": "final",
        "code": systolic,
        "valueQuantity": {"code": "mm[Hg]", "value": 1},
    }
    subjects = [{"subject": {"reference": f"Patient/{one}"}} for one in "12"]
    write("Observation", [{**measured, **one} for one in subjects])
    given = {"scope": research, "status": "active", "provision": {"type": "permit"}}
    permits = [{**given, "patient": one["subject"]} for one in subjects]
    denies = {**given, "provision": {"type": "deny"}, "patient": {"reference": reference}}
    write("Consent", [*permits, denies])
    out = tmp_path / "records.csv"
    command = [sys.executable, str(EXAMPLES / "fhir_export.py"), str(tmp_path), str(out)]
    subprocess.run(command, check=True)
    with out.open() as file:
        assert {
            one["patient_id"]: one["research_consent"] for one in csv.DictReader(file)
        } == consent
    write("Consent", [*permits, {**denies, "patient": {"display": "somebody"}}])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "names nobody" in done.stderr) == (1, True)


PERMIT: dict[str, Any] = {"type": "permit"}
CONSENTS: list[tuple[list[dict[str, Any]], str]] = [
    ([{}], "yes"),
    ([{"provision": {**PERMIT, "period": {"start": "2001", "end": "2999"}}}], "yes"),
    ([{}, {"status": "rejected"}], "no"),
    ([{}, {"status": "inactive", "provision": {"type": "deny"}}], "yes"),
    ([{}, {"provision": {**PERMIT, "provision": [{"type": "deny"}]}}], "no"),
    ([{"provision": {**PERMIT, "provision": [{**PERMIT, "provision": [{}]}]}}], "no"),
    ([{"provision": {**PERMIT, "period": {"end": "2001-01-31T10:00:00Z"}}}], "no"),
    ([{"provision": {**PERMIT, "period": {"end": "2001"}}}, {}], "yes"),
    ([{"provision": {}}], "no"),
]


@pytest.mark.parametrize(("said", "agreed"), CONSENTS)
def test_the_fhir_example_takes_doubt_for_no_consent(
    tmp_path: Path, said: list[dict[str, Any]], agreed: str
) -> None:
    """A rejected one, an exception that denies, and one whose time is over."""
    write = partial(_write_ndjson, tmp_path)
    write("Patient", [{"id": "a", "birthDate": "1950"}])
    write("Observation", [observation("a", 120.0)])
    write("Consent", [{**consent("a", "permit"), **one} for one in said])
    out = tmp_path / "records.csv"
    command = [sys.executable, str(EXAMPLES / "fhir_export.py"), str(tmp_path), str(out)]
    subprocess.run(command, check=True)
    with out.open() as file:
        assert [one["research_consent"] for one in csv.DictReader(file)] == [agreed]


def _write_ndjson(folder: Path, kind: str, resources: list[dict[str, Any]]) -> None:
    lines = [json.dumps({"resourceType": kind, **one}) for one in resources]
    (folder / f"{kind}.ndjson").write_text("\n".join(lines))
