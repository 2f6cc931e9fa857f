"""Two people raise a limit: real processes, from a refused job to an export that verifies."""

import json
from pathlib import Path
from typing import Any

import yaml

from privacy.ledger import LimitChange
from protos.feddp.v1 import federation_pb2 as pb
from tests.attackers import drop_guards
from tests.integration.federation import (
    NODES,
    Federation,
    cli_json,
    job_file,
    null_job,
    run_cli,
    wait_for,
)
from tests.integration.test_moving import countersigned, put_back, snapshot, status

NAMES = ("alpha", "beta", "gamma")
JOB = {"federation": {"rounds": 1, "local_steps": 2}, "privacy": {"target_epsilon": 0.5}}


def test_a_job_that_the_budget_refused_runs_once_two_people_have_raised_the_limit(
    coordinator: Federation, tmp_path: Path
) -> None:
    """The whole way, with agents running all the time; then what was exported is tampered with."""
    for name in NAMES:
        coordinator.add_node(name, epsilon_limit=0.6)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NAMES)
    assert coordinator.wait_for_end(coordinator.submit(job_file(**JOB))).status == "completed"
    with coordinator.client() as client:
        submitted = client.submit(job_file(**JOB))
    assert submitted.status == "budget_exhausted", "and not that it waits"
    assert not [one for one in submitted.warnings if "waits" in one]
    second = coordinator.wait_for_end(submitted.job_id)
    assert (second.status, second.rounds_done) == ("budget_exhausted", 0)

    for name in NAMES:
        raise_limit(coordinator, name, tmp_path)
    for name in NAMES:
        wait_for("the coordinator follows", lambda name=name: limit(coordinator, name) == 2.0)  # type: ignore[misc]
    third = coordinator.wait_for_end(coordinator.submit(job_file(**JOB)))
    assert third.status == "completed", third.message
    assert {node.name for node in third.nodes} == set(NAMES)

    raises = [one for one in coordinator.entries() if isinstance(one.statement, LimitChange)]
    assert [one.statement.node for one in raises] == list(NAMES)
    restart(coordinator)
    assert len(coordinator.entries("limit")) == len(NAMES), "a raise is appended once"
    check_exports(coordinator, tmp_path)
    for name in NAMES:
        found = cli_json("agent", "status", "--dir", str(coordinator.agent(name)))
        assert found["ledger"]["verified"], found["ledger"]["problems"]
        assert found["ledger"]["disputes"] == []
        wait_for("it has seen that there", lambda name=name: unseen(coordinator, name) == 0)  # type: ignore[misc]
    check_database(coordinator)


def test_a_job_that_waits_goes_on_after_the_raise(coordinator: Federation, tmp_path: Path) -> None:
    """One of four hospitals cannot pay, one is away; the raise brings the third that it needs."""
    for name in NODES:
        coordinator.add_node(name, epsilon_limit=0.6 if name == "alpha" else 10.0)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NODES)
    # It costs nothing, and from its entries on the limit is a promise.
    assert coordinator.wait_for_end(coordinator.submit(null_job(1))).status == "completed"
    coordinator.kill("delta")
    job_id = coordinator.submit(job_file(**{**JOB, "privacy": {"target_epsilon": 1.0}}))

    def waits_for() -> dict[str, str]:
        return {one.node: one.reason for one in coordinator.job(job_id).waiting if one.node}

    wait_for("it waits", lambda: waits_for() == {"alpha": "BUDGET", "delta": "OFFLINE"})
    raise_limit(coordinator, "alpha", tmp_path)
    job = coordinator.wait_for_end(job_id)
    assert job.status == "completed", job.message
    parts = {one.node: one.outcome for one in job.rounds[0].participation}
    assert parts == dict.fromkeys(NAMES, "update") | {"delta": "left_out"}


def test_a_ledger_from_before_a_raise_does_not_undo_it(
    coordinator: Federation, tmp_path: Path
) -> None:
    """An older copy is imported, or put back as it is and then imported: the node reads the raise
    from the chain, the coordinator goes on to hold to it, and what was exported verifies with the
    node's own file. Then the steward lowers the limit, and is followed."""
    folder = coordinator.agent("alpha")
    for name in NAMES:
        coordinator.add_node(name, epsilon_limit=0.6)
        coordinator.start(name)
    coordinator.wait_for_nodes(*NAMES)
    assert coordinator.wait_for_end(coordinator.submit(null_job(1))).status == "completed"
    wait_for("it is countersigned", lambda: countersigned(coordinator, "alpha/patients", 2))
    copy, saved = tmp_path / "copy.db", tmp_path / "saved"
    cli_json("agent", "ledger", "export", str(copy), "--dir", str(folder))
    coordinator.terminate("alpha")
    snapshot(folder, saved)
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    raise_limit(coordinator, "alpha", tmp_path)
    wait_for("the coordinator follows", lambda: limit(coordinator, "alpha") == 2.0)
    wait_for("it has seen that there", lambda: unseen(coordinator, "alpha") == 0)
    wait_for("it is countersigned", lambda: countersigned(coordinator, "alpha/patients", 3))

    def catches_up() -> None:
        """Without a restart, and the limit of now is the raised one on both sides."""
        wait_for("it knows the raise again", lambda: here(folder)["raises"] == 1)
        wait_for("it can be ordered", lambda: refuses(coordinator, "alpha") == "")
        assert here(folder)["epsilon_limit"] == limit(coordinator, "alpha") == 2.0
        whole = cli_json("budget", "ledger", "--dir", str(coordinator.installation.folder))
        export, heads = tmp_path / "whole.json", tmp_path / "heads.json"
        export.write_text(json.dumps(whole))
        heads.write_text(json.dumps(cli_json("agent", "ledger", "heads", "--dir", str(folder))))
        code, out, _ = run_cli("budget", "verify", str(export), "--heads", str(heads))
        assert code == 0, out

    coordinator.kill("alpha")
    for one in folder.glob("state.db*"):
        one.unlink()
    cli_json("agent", "ledger", "import", str(copy), "--dir", str(folder))
    assert here(folder)["raises"] == 0
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    catches_up()

    coordinator.kill("alpha")
    put_back(saved, folder)
    coordinator.start("alpha")
    wait_for("it is found out", lambda: "ledger_rolled_back" in coordinator.log("alpha"))
    assert limit(coordinator, "alpha") == 2.0
    coordinator.kill("alpha")
    own = tmp_path / "own.db"
    cli_json("agent", "ledger", "export", str(own), "--dir", str(folder))
    cli_json("agent", "ledger", "import", str(own), "--dir", str(folder))
    coordinator.start("alpha")
    coordinator.wait_for_nodes("alpha")
    catches_up()

    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    policy["accounts"][0]["epsilon_limit"] = 1.0
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    wait_for("the steward is followed", lambda: limit(coordinator, "alpha") == 1.0)


def here(folder: Path) -> dict[str, Any]:
    """The account, as the node's own ledger has it; what the agent says of itself aside."""
    (account,) = status(folder)["accounts"]
    return dict(account)


def refuses(federation: Federation, name: str) -> str:
    """Why the node refuses every order on its account, as the coordinator heard it last."""
    with federation.database() as database:
        query = "SELECT hello FROM nodes WHERE name = ?"
        hello = pb.Hello.FromString(database.execute(query, (name,)).fetchone()[0])
    return hello.accounts[0].refuses


def check_database(federation: Federation) -> None:
    """What whoever may write to it changes is named, whether it can be read or not."""
    root = str(federation.installation.folder)
    for change in ("replace(limit_change, '2.0', '3.0')", "'no JSON'", "NULL"):
        with federation.database() as database:
            drop_guards(database)
            database.execute(
                f"UPDATE entries SET limit_change = {change}"  # noqa: S608
                " WHERE kind = 'limit' AND node = 'alpha'"
            )
            database.commit()
        code, out, err = run_cli("budget", "verify", "--dir", root, "--json")
        assert code == 1, err
        assert [one["account"] for one in json.loads(out)["problems"]] == ["alpha/patients"]


def raise_limit(federation: Federation, name: str, keys: Path) -> None:
    """The number alone does nothing, one person alone does nothing; two people do."""
    agent = federation.agent(name)
    at = ("--dir", str(agent))
    path = agent / "policy.yaml"
    policy = yaml.safe_load(path.read_text())
    policy["accounts"][0]["epsilon_limit"] = 2.0
    path.write_text(yaml.safe_dump(policy))
    wait_for("it says what to do", lambda: "limit_not_raised" in federation.log(name))
    file = str(keys / f"{name}.json")
    people = {one: keys / f"{name}-{one}.key" for one in ("anna", "bert")}

    def run(verb: str, *words: str) -> tuple[int, str, str]:
        return run_cli("agent", "limit", verb, *words, *at)

    def signing(person: str) -> tuple[str, ...]:
        return ("--by", person, "--key", str(people[person]))

    stewards = [
        {
            "name": one,
            "public_key": cli_json("agent", "limit", "key", one, "--out", str(key))["public_key"],
        }
        for one, key in people.items()
    ]
    asking = ("patients", *signing("anna"), "--reason", "the second study", "--out", file)
    code, _, err = run("propose", *asking)
    assert (code, "policy.yaml names 0 stewards" in err) == (3, True)
    path.write_text(yaml.safe_dump({**policy, "stewards": stewards}))
    code, out, err = run("propose", *asking)
    assert code == 0, err
    assert "0.6 -> 2 at delta 1e-05" in out
    code, _, err = run("apply", file)
    assert (code, "nobody has agreed yet" in err) == (1, True)
    code, _, err = run("approve", file, *signing("anna"))
    assert (code, "it takes another to agree" in err) == (3, True)
    assert run("approve", file, *signing("bert"))[0] == 0
    assert run("apply", file, "--dry-run")[0] == 0
    assert limit(federation, name) == 0.6
    code, out, err = run("apply", file)
    assert (code, err) == (0, "")
    code, _, err = run("apply", file)
    assert (code, "recorded already" in err) == (1, True)


def limit(federation: Federation, name: str) -> float:
    """What the coordinator holds an account to."""
    with federation.client() as client:
        accounts = client.accounts("")
    return next(one.epsilon_limit for one in accounts if one.node == name)


def unseen(federation: Federation, name: str) -> int:
    """Raises that a node has not seen in the coordinator's chain yet."""
    found = cli_json("agent", "status", "--dir", str(federation.agent(name)))
    return int(found["accounts"][0]["raises_unseen"])


def restart(federation: Federation) -> None:
    """Both ends say and hear everything once more."""
    for name in ("coordinator", *NAMES):
        federation.kill(name)
    for name in ("coordinator", *NAMES):
        federation.start(name)
    federation.wait_for_nodes(*NAMES)


def check_exports(federation: Federation, folder: Path) -> None:
    """From the server and from its database; and each forgery names the entry."""
    root = str(federation.installation.folder)
    profile = str(federation.installation.profile)
    whole = cli_json("budget", "ledger", "--profile", profile)
    assert whole["entries"] == cli_json("budget", "ledger", "--dir", root)["entries"]
    (one,) = (x for x in whole["entries"] if x["kind"] == "limit" and x["node"] == "alpha")
    assert (one["asked_by"], one["agreed_by"]) == ("anna", "bert")
    assert verify(whole, folder) == (0, [])
    assert "limit raised 1 time, 0.6 at first" in run_cli("budget", "show", "--dir", root)[1]
    table = run_cli("budget", "ledger", "--dir", root)[1]
    assert "epsilon 0.6 -> 2 at delta 1e-05, anna and bert: the second study" in table
    for changes in (
        {"epsilon_limit_new": 3.0},
        {"agreed_by": "anna"},
        {"reason": "another"},
        {"number": 2},
        {"node_signature": ""},
        {"unheard_of": 1},
    ):
        forged = json.loads(json.dumps(whole))
        forged["entries"][whole["entries"].index(one)] |= changes
        assert verify(forged, folder) == (1, [("alpha/patients", one["seq"])]), changes
    without = json.loads(json.dumps(whole))
    for account in without["accounts"]:
        account["epsilon_limit"] = 5.0
    code, problems = verify(without, folder)
    assert (code, {account for account, _ in problems}) == (1, {f"{n}/patients" for n in NAMES})


def verify(export: dict[str, Any], folder: Path) -> tuple[int, list[tuple[str, int]]]:
    """(exit code, the entries that `budget verify` names)."""
    path = folder / "export.json"
    path.write_text(json.dumps(export))
    code, out, _ = run_cli("budget", "verify", str(path), "--json")
    return code, [(one["account"], one["seq"]) for one in json.loads(out)["problems"]]
