"""`feddp agent logs`, `outbox` and `digest`: what became of attempts, for the hospital."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from feddp.cli import output
from feddp.cli.options import Json

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    folder: Folder,
    lines: Annotated[int, typer.Option(min=0, help="Of the end of the worker's log.")] = 40,
    as_json: Json = False,
) -> None:
    """Why attempts of a job gave no update: the sentence, the remedy and the worker's log.

    All of it stays in the hospital. Of an attempt whose data was opened the coordinator knows no
    more than that there is no update, unless the policy shares the kind of the failure.
    """
    from node_agent.failures import kept, worker_log
    from node_agent.folder.config import Folder as AgentFolder
    from node_agent.folder.config import load_config
    from protos.errors import NotFound

    agent = AgentFolder(folder.absolute())
    load_config(agent)
    failures = kept(agent.logs, job)
    tail = worker_log(agent.logs, job, lines)
    known = (agent.logs / f"worker-{job}.log").is_file() if "/" not in job else False
    if not failures and not known:
        raise NotFound(
            "JOB_UNKNOWN",
            f"no attempt of job {job} failed here and no worker of it has a log; `feddp agent "
            f"outbox --dir {folder}` lists the jobs that this node knows",
        )
    if as_json:
        output.print_json(
            {"job_id": job, "failures": [asdict(one) for one in failures], "log": tail}
        )
        return
    for one in failures:
        opened = "data was opened" if one.opened else "data was not opened, and this was told"
        output.line(
            f"{output.moment(one.at_s)}  round {one.round}, attempt {one.attempt_id} ({opened})"
        )
        output.line(f"  {one.reason}: {one.sentence}")
        if one.detail:
            output.line(f"  {'the worker says' if one.opened else 'why'}: {one.detail}")
        if one.remedy:
            output.line(f"  what to do: {one.remedy}")
    if not failures:
        output.line(f"no attempt of job {job} failed here")
    if tail:
        output.line(f"the end of {agent.logs / f'worker-{job}.log'}:")
        for text in tail:
            output.line(f"  {text}")


def outbox(
    folder: Folder,
    job: Annotated[str, typer.Option("--job", metavar="JOB", help="Only this job's.")] = "",
    as_json: Json = False,
) -> None:
    """What left this hospital, what will leave, and what each cost, by the node's own ledger."""
    from node_agent.ledger.booked import said
    from node_agent.outbox import outbox as read_outbox

    found = read_outbox(folder, job)
    if as_json:
        output.print_json(found)
        return
    for text in _published(found["published"]):
        output.line(f"each session tells: {text}")
    output.table(
        ("JOB", "ROUND", "DATA SET", "STANDS", "LEAVES", "UPDATE", "EPSILON ALONE", "BOOKED"),
        [_row(one) for one in found["items"]],
    )
    from node_agent.outbox import STANDINGS

    shown = {one["standing"] for one in found["items"]}
    for name, meaning in STANDINGS.items():
        if name in shown:
            output.line(f"{name}: {meaning}")
    if found["restored"]:
        output.line(
            f"{output.counted(found['restored'], 'attempt')} of before a copy was imported: only "
            "in the ledger"
        )
    for one in found["accounts"]:
        output.line(f"account {one['account']}: {said(one)}")
    if found["accounts"]:
        output.line("together the releases cost less than the sum of what each costs alone")


def _published(told: dict[str, Any]) -> Iterator[str]:
    for one in told["data_sets"]:
        columns = ", ".join(_column(*entry) for entry in one["columns"].items())
        why = f", cannot be used: {one['unavailable']}" if one["unavailable"] else ""
        yield (
            f"data set {one['name']}, account {one['account']}, {one['declared_n']} patients "
            f"declared, version {one['version']}, columns {columns}, tasks allowed "
            f"{', '.join(one['tasks']) or 'none'}{why}"
        )
    for one in told["accounts"]:
        yield f"account {', '.join(f'{key} {_value(value)}' for key, value in one.items())}"
    for name in told["tasks"]:
        yield f"task {name}, with the schema of its configuration"
    for one in told["limits"]:
        yield f"raised limit {', '.join(f'{key} {_value(value)}' for key, value in one.items())}"
    yield f"open attempts {', '.join(told['open_attempts']) or 'none'}"
    yield (
        f"agent {told['agent_version']}, protocol {told['protocol_version']}, a number drawn at "
        "the agent's start; and of a data set whose file cannot be read, that it is so"
    )


def _column(name: str, declared: Any) -> str:
    kinds = declared.get("category") if isinstance(declared, dict) else None
    return f"{name} ({', '.join(kinds)})" if kinds else f"{name} (number)"


def _value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _row(one: dict[str, Any]) -> list[str]:
    size = one["update_bytes"]
    digest = f"{one['digest'][:12]}…" if one["digest"] else "none"
    return [
        one["job_id"],
        str(one["round"]),
        one["data_set"],
        one["standing"],
        output.moment(one["leaves_at_s"]) if one["leaves_at_s"] else "",
        digest if size is None else f"{digest} {output.bytes_text(size)}",
        output.epsilon(one["epsilon_alone"]),
        one["booked"] or "nothing",
    ]


def digest(
    folder: Folder,
    days: Annotated[float, typer.Option(min=0.01, max=36_500, help="How far back.")] = 7.0,
    as_json: Json = False,
) -> None:
    """What a data steward should read once a week: releases, refusals, budgets, what is wrong.

    With `alerts` in agent.yaml the running agent sends it by itself, every `digest_days`.
    """
    from node_agent.alerts.digest import digest as read_digest
    from node_agent.alerts.digest import said

    found = read_digest(folder, days)
    if as_json:
        output.print_json(found)
    else:
        for text in said(found).splitlines():
            output.line(text)
