"""The examples under config/sources, run on made-up records."""

import shutil
from pathlib import Path

import numpy as np
import yaml
from structlog.testing import capture_logs

from benchmarks.postgresql import PostgreSql
from node_agent.datasets import load_data_sets
from node_agent.headers import check_header
from node_agent.records import read_records
from node_agent.tasks.tabular_config import Feature

EXAMPLES = Path(__file__).resolve().parents[2] / "config" / "sources"
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
