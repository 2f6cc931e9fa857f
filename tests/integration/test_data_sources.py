"""A job over hospitals whose records are a database, a Parquet file and a CSV file."""

import csv
import json
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.postgresql import PostgreSql
from tests.integration.federation import NODES, Federation, cli_json, job_file

VARIABLE = "FEDDP_SOURCE_COHORT"
READ_S = 3.0
"""More than a busy machine takes: a query that is not done by then is an attempt without an update,
and a second one."""

LEFT_OUT = {"alpha": (3, 0), "beta": (0, 2), "gamma": (4, 1)}
"""Node -> patients without consent, patients on the opt-out list."""


def records(node: str) -> list[tuple[str, float, int, str]]:
    """Those of the CSV file that the federation writes, with what each patient agreed to."""
    refused = LEFT_OUT[node][0]
    return [
        (
            f"p{number}",
            (number % 21 - 10) / 10,
            int(number % 21 > 10),
            "no" if number < refused else "yes",
        )
        for number in range(60)
    ]


def in_database(node: str, url: str) -> None:
    """Put a node's records there."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE cohort (id text, x float8, label int, agreed text)")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO cohort VALUES (%s, %s, %s, %s)", records(node))


def declare(folder: Path, node: str, source: str, **change: Any) -> None:
    """The data set of a node, its consent column and its opt-out list."""
    refused, listed = LEFT_OUT[node]
    (folder / "opt-out.txt").write_text("".join(f"p{59 - number}\n" for number in range(listed)))
    path = folder / "datasets.yaml"
    declared = yaml.safe_load(path.read_text())
    declared["data_sets"][0] |= {"source": source, "opt_out": "opt-out.txt", **change}
    if refused:
        declared["data_sets"][0]["consent"] = {"column": "agreed", "values": ["yes"]}
    path.write_text(yaml.safe_dump(declared))


def test_a_job_trains_on_every_kind_of_source_and_leaves_out_who_did_not_agree(
    coordinator: Federation, postgresql_server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node gives an update; how many were left out stands in that hospital's worker log and
    nowhere else; the database's password stands nowhere."""
    url = postgresql_server.new_database()
    password = postgresql_server.password
    in_database("alpha", url)
    monkeypatch.setenv(VARIABLE, password)
    for name in NODES[:3]:
        coordinator.add_node(name)
    alpha, beta, gamma = (coordinator.agent(name) for name in NODES[:3])
    (alpha / "cohort.sql").write_text("SELECT id AS patient_id, x, label, agreed FROM cohort")
    asked = {"url": url.replace(f":{password}", ""), "password_env": VARIABLE, "read_s": READ_S}
    declare(alpha, "alpha", "cohort.sql", database=asked)
    ids, x, labels, _ = zip(*records("beta"), strict=True)
    pq.write_table(pa.table({"patient_id": ids, "x": x, "label": labels}), beta / "cohort.parquet")
    declare(beta, "beta", "cohort.parquet")
    with (gamma / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient_id", "x", "label", "agreed"), *records("gamma")])
    declare(gamma, "gamma", "cohort.csv")
    for name in NODES[:3]:
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES[:3])
    assert cli_json("agent", "status", "--dir", str(alpha))["in_order"]
    job_id = coordinator.submit(job_file(federation={"rounds": 1, "local_steps": 2}))
    job = coordinator.wait_for_end(job_id)
    assert job.status == "completed", job.message
    took_part = {one.node for one in job.rounds[0].participation if one.outcome == "update"}
    assert took_part == set(NODES[:3])
    for name in NODES[:3]:
        log = (coordinator.agent(name) / "logs" / f"worker-{job_id}.log").read_text()
        lines = [json.loads(line) for line in log.splitlines() if "patients_excluded" in line]
        # A rehearsal on made-up records tells the same of these, and names them so.
        [said] = [line for line in lines if line["data_set"] == "cohort"]
        assert (said["without_consent"], said["opted_out"]) == LEFT_OUT[name]
    coordinator.stop()
    for path in coordinator.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert password.encode() not in content, path
        assert path.name.startswith("worker-") or b"patients_excluded" not in content, path
