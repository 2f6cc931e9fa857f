"""`feddp agent policy`: what a node allows."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feddp.cli import output
from feddp.cli.failures import FAILED
from feddp.cli.groups import noun
from feddp.cli.options import Json
from feddp.cli.policy_faults import asking_said, projects_said, starts_said, verdict_of

if TYPE_CHECKING:
    from node_agent.policy.explaining import Said
    from node_agent.policy.orders import Order
    from node_agent.policy.steward import Rules

app = noun("Check, show and explain the data steward's policy.")

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", readable=False, help="The agent's folder.")
]


@app.command()
def check(folder: Folder, as_json: Json = False) -> None:
    """Whether policy.yaml and datasets.yaml hold, by themselves and by this node's own ledger.

    Exit code 2 if a file is wrong, with all that is, key by key and name by name; 1 if the agent
    refuses orders for what the files say and its ledger knows. The agent may run. What is wrong
    with a data set's own files, and a task in `allow` that is not installed, are warnings, and
    leave the exit code at 0; so is a policy by which nobody may ask.
    """
    from node_agent.folder.config import Folder as AgentFolder
    from node_agent.folder.ownership import seen_as_another
    from node_agent.policy.steward import checked_rules
    from node_agent.status import files_alone, files_and_kept_ledger, status
    from protos.errors import NotAllowed, NotFound

    rules = checked_rules(AgentFolder(folder.absolute()))
    unread = ""
    try:
        found = status(folder)
    except NotFound as error:
        if error.reason != "NOT_JOINED":
            raise
        found = files_and_kept_ledger(rules, AgentFolder(folder.absolute()))
    except NotAllowed as error:
        if error.reason != "OTHER_USER":
            raise
        found, unread = files_alone(rules), error.message
    asked = [asking_said(rules.policy.who_may_ask), *projects_said(rules.policy)]
    said = verdict_of(found, unread, seen_as_another(folder), asked=asked)
    starts = [text for text in map(starts_said, found["accounts"]) if text]
    counts = {"accounts": len(rules.policy.accounts), "data_sets": len(rules.data_sets)}
    ok = not said.refused
    if as_json:
        output.print_json({"ok": ok, **counts, **asdict(said), "starts": starts})
    else:
        for text in starts:
            output.line(text)
        for word, texts in (
            ("note", said.notes),
            ("WARNING", said.warnings),
            ("REFUSED", said.refused),
        ):
            for text in texts:
                output.line(f"{word}: {text}")
        output.line(f"{'in order' if ok else 'NOT in order'}: {_counted(counts)}")
    if not ok:
        raise typer.Exit(FAILED)


@app.command()
def show(folder: Folder, as_json: Json = False) -> None:
    """The policy as it is understood, what it leaves out filled in."""
    rules = _rules(folder)
    policy = rules.policy.model_dump(mode="json")
    if as_json:
        output.print_json(policy)
        return
    import yaml

    for line in yaml.safe_dump(policy, sort_keys=False, width=100).splitlines():
        output.line(line)


@app.command()
def explain(
    order: Annotated[
        str, typer.Argument(metavar="ORDER", help="A job file, or the id of a job seen here.")
    ],
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Each rule's verdict on an order, as if it came now. Exit code 1 if one refuses.

    Of a job file the noise is not known, which the coordinator derives from its target: it is
    taken as one release of all rounds, of 20 full-batch steps if the file leaves them open.
    """
    from node_agent.policy.explaining import explain as explain_order
    from node_agent.policy.explaining import order_of_job

    path = Path(order)
    from_file = path.is_file()
    asked = _order_of_file(folder, path) if from_file else order_of_job(folder, order)
    said = explain_order(folder, asked, from_file=from_file)
    if as_json:
        output.print_json({"order": order, "rules": [asdict(one) for one in said]})
    else:
        output.table(("RULE", "VERDICT", "REASON"), [_row(one) for one in said])
        for one in said:
            if one.message:
                output.line(f"{one.rule}: {one.message}")
    if any(one.verdict == "refuses" for one in said):
        raise typer.Exit(FAILED)


def _rules(folder: Path) -> "Rules":
    from node_agent.folder.config import Folder as AgentFolder
    from node_agent.policy.steward import Steward

    return Steward(AgentFolder(folder.absolute())).rules()


def _counted(counts: dict[str, int]) -> str:
    accounts = output.counted(counts["accounts"], "account")
    return f"{accounts}, {output.counted(counts['data_sets'], 'data set')}"


def _row(one: "Said") -> tuple[str, str, str]:
    return one.rule, one.verdict, one.reason


def _order_of_file(folder: Path, file: Path) -> "Order":
    """An order as a coordinator could make it of a job file, of the whole job in one release."""
    from certs.mandates import canonical_json, new_job_id
    from feddp.jobfile import facts_of, read_spec
    from node_agent.policy.judgement import UNIT
    from node_agent.policy.orders import Order
    from node_agent.tasks.registry import installed
    from protos.errors import NotFound
    from protos.feddp.v1 import federation_pb2 as pb

    facts, rules = facts_of(read_spec(file)), _rules(folder)
    spec = next((one for one in rules.data_sets if one.name == facts.data_set), None)
    info = installed().get(facts.task)
    if info is None:
        raise NotFound("TASK_UNKNOWN", f"no task {facts.task} is installed here")
    account = rules.policy.account(spec.account) if spec else None
    release: dict[str, Any] = {"mechanism": "no_data", "sample_rate": 1.0, "steps": 0}
    if facts.without_noise:
        release |= {"mechanism": "none", "steps": 1}
    elif info.reads_data:
        steps = (facts.rounds or 1) * int(facts.federation("local_steps") or 0) or STEPS
        noise = facts.privacy("noise_multiplier")
        target = facts.privacy("target_epsilon")
        if noise is None and target is not None and account is not None:
            noise = _noise(rules, account.name, target, steps)
        if spec is None:
            noise = noise or 1.0  # of no account, and refused as DATA_SET_UNKNOWN whatever it is
        release |= {"mechanism": "gaussian", "noise_multiplier": noise or 0.0, "steps": steps}
    return Order.from_wire(
        pb.WorkOrder(
            attempt_id="explained",
            job_id=new_job_id(),
            project=facts.project,
            round=1,
            data_set=facts.data_set or "none",
            account=spec.account if spec else "none",
            task=facts.task,
            task_hash=info.content_hash,
            task_config_json=canonical_json(dict(facts.task_config)),
            release=pb.Release(unit=UNIT, declared_n=spec.declared_n if spec else 1, **release),
            max_grad_norm=(facts.privacy("max_grad_norm") or 1.0) if info.reads_data else 0.0,
            base_model_digest="0" * 64,
            target_epsilon=facts.privacy("target_epsilon") or 0.0,
            delta=facts.privacy("delta") or (account.delta if account else 0.0),
        )
    )


STEPS = 20


def _noise(rules: "Rules", account_name: str, target: float, steps: int) -> float:
    """The noise that a target needs on an account, for all steps in one release."""
    from node_agent.ledger.account_filters import filter_of
    from privacy.calibration import noise_multiplier_for
    from privacy.filters import make_filter

    account = rules.policy.account(account_name)
    if account is None:
        return 0.0
    counted = filter_of(account, rules.data_sets, None)
    share = make_filter(counted.kind, counted.order, target, counted.delta)
    return noise_multiplier_for(share, share.limit_units, 1, steps, 1.0)
