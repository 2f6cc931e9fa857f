"""What a coordinator in the wrong hands can try at a node, and why it comes to nothing.

A real coordinator (`tests/integration/crooked.py`) speaks to real agents over mTLS; each test sends
one order that no honest one would, and the node says why it refuses it. docs/hospital-it.md has the
same moves in a table.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from certs.mandates import canonical_json, config_digest, new_job_id
from node_agent.tasks.registry import EVALUATION, NULL, initial_model, installed
from protos.content import digest_of
from protos.feddp.v1 import federation_pb2 as pb
from tests.integration.crooked import Crooked, engineer_key, signed_by
from tests.integration.federation import cli_json, job_file, wait_for

NODE = "alpha"
STRANGER = Ed25519PrivateKey.generate()
CAROL = Ed25519PrivateKey.generate()
BOB = Ed25519PrivateKey.generate()
"""The stewards pin Carol's key for the jobs' project, and Bob's for another one."""

DAY_S = 86_400


@pytest.fixture(scope="module")
def crooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crooked]:
    """The coordinator, and two hospitals with an agent each."""
    found = Crooked(tmp_path_factory.mktemp("crooked"))
    federation = found.federation
    for name in (NODE, "beta"):
        federation.add_node(name)
        path = federation.agent(name) / "policy.yaml"
        policy = yaml.safe_load(path.read_text())
        policy["who_may_ask"]["engineers"] += [
            {"name": "carol", "public_key": public(CAROL), "projects": ["default"]},
            {"name": "bob", "public_key": public(BOB), "projects": ["elsewhere"]},
        ]
        path.write_text(yaml.safe_dump(policy))
        federation.start(name)
    federation.wait_for_nodes(NODE, "beta")
    yield found
    found.stop()


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def ordered(crooked: Crooked, spec: bytes) -> pb.WorkOrder:
    """The order for `NODE` of a job that was signed and submitted honestly, not yet sent."""
    job_id = crooked.federation.submit(spec)
    wait_for("the order", lambda: crooked.order_of(NODE, job_id) is not None)
    order = crooked.order_of(NODE, job_id)
    assert order is not None
    return order


@pytest.fixture(scope="module")
def template(crooked: Crooked) -> bytes:
    """An order that the node would carry out as it is."""
    return ordered(crooked, job_file()).SerializeToString()


def null_order(template: bytes, key: Ed25519PrivateKey) -> pb.WorkOrder:
    """An order that reads no data, of a job of its own that the engineer has signed."""
    order = pb.WorkOrder.FromString(template)
    config = {"parameters": 100}
    order.task, order.task_hash = NULL, installed()[NULL].content_hash
    order.task_config_json = canonical_json(config)
    order.release.mechanism, order.release.steps = "no_data", 0
    order.release.ClearField("noise_multiplier")
    order.max_grad_norm = order.target_epsilon = 0.0
    order.base_model = initial_model(NULL, config, 0)
    order.base_model_digest = digest_of(order.base_model)
    order.base_model_bytes = len(order.base_model)
    order.job_id = new_job_id()
    return signed_by(
        key,
        order,
        lambda one: replace(
            one,
            job_id=order.job_id,
            task=order.task,
            task_hash=order.task_hash,
            task_config_digest=config_digest(config),
            initial_model=order.base_model_digest,
            mechanism="no_data",
            epsilon_max=0.0,
            rounds_max=5,
            max_grad_norm=None,
        ),
    )


Move = Callable[[pb.WorkOrder, Ed25519PrivateKey], pb.WorkOrder]


def invents(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.ClearField("mandate")
    return order


def signs_itself(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    return signed_by(STRANGER, order, lambda one: one)


def rewrites(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    body = json.loads(order.mandate.body)
    body["epsilon_max"] = 9.0
    order.mandate.body = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return order


def garbles(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.mandate.body = order.mandate.body[:-1]
    return order


def borrows_another_projects_engineer(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    return signed_by(BOB, order, lambda one: one)


def waits_too_long(order: pb.WorkOrder, key: Ed25519PrivateKey) -> pb.WorkOrder:
    now_s = int(time.time())
    return signed_by(
        key, order, lambda one: replace(one, signed_at_s=now_s - 9, expires_at_s=now_s - 1)
    )


def hoards(order: pb.WorkOrder, key: Ed25519PrivateKey) -> pb.WorkOrder:
    later_s = int(time.time()) + 40 * DAY_S
    return signed_by(key, order, lambda one: replace(one, expires_at_s=later_s))


def asks_another_node(order: pb.WorkOrder, key: Ed25519PrivateKey) -> pb.WorkOrder:
    return signed_by(key, order, lambda one: replace(one, nodes=("beta", "gamma")))


def names_another_job(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.job_id = "job-0123456789abcdef"
    return order


def names_another_project(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.project = "elsewhere"
    return order


def turns_to_another_data_set(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.data_set = "other"
    return order


def swaps_the_task(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.task, order.task_hash = EVALUATION, installed()[EVALUATION].content_hash
    return order


def swaps_the_tasks_code(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.task_hash = digest_of(b"other code")
    return order


def changes_the_configuration(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    config = json.loads(order.task_config_json)
    order.task_config_json = json.dumps({**config, "learning_rate": 1000.0})
    return order


def drops_the_noise(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.release.mechanism = "none"
    order.release.ClearField("noise_multiplier")
    return order


def widens_the_clipping(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.max_grad_norm = 100.0
    return order


def crafts_a_model(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.base_model = b"made for this node"
    order.base_model_digest = digest_of(order.base_model)
    order.base_model_bytes = len(order.base_model)
    return order


def goes_on_for_ever(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.round = 4
    return order


def raises_the_target(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.target_epsilon = 8.0
    order.release.noise_multiplier /= 3.0
    return order


def passes_the_target(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.release.noise_multiplier /= 3.0
    return order


def adds_too_little_noise(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.release.noise_multiplier = 0.01
    return order


def declares_fewer_patients(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.release.declared_n = 6000
    return order


def books_on_another_account(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.account = "others"
    return order


def promises_another_unit(order: pb.WorkOrder, _: Ed25519PrivateKey) -> pb.WorkOrder:
    order.release.unit = "record"
    return order


MOVES: list[tuple[Move, str]] = [
    (invents, "ORDER_UNSIGNED"),
    (signs_itself, "ENGINEER_UNKNOWN"),
    (rewrites, "MANDATE_FORGED"),
    (garbles, "MANDATE_INVALID"),
    (borrows_another_projects_engineer, "ENGINEER_PROJECT"),
    (waits_too_long, "MANDATE_EXPIRED"),
    (hoards, "MANDATE_TOO_LONG"),
    (asks_another_node, "MANDATE_OTHER_NODES"),
    (names_another_job, "MANDATE_OTHER_JOB"),
    (names_another_project, "MANDATE_OTHER_PROJECT"),
    (turns_to_another_data_set, "MANDATE_OTHER_DATA_SET"),
    (swaps_the_task, "MANDATE_OTHER_TASK"),
    (swaps_the_tasks_code, "MANDATE_OTHER_TASK"),
    (changes_the_configuration, "MANDATE_OTHER_CONFIG"),
    (drops_the_noise, "MANDATE_OTHER_MECHANISM"),
    (widens_the_clipping, "MANDATE_OTHER_TERMS"),
    (crafts_a_model, "MANDATE_OTHER_MODEL"),
    (goes_on_for_ever, "MANDATE_ROUNDS"),
    (raises_the_target, "MANDATE_EPSILON"),
    (passes_the_target, "TARGET_EXCEEDED"),
    (adds_too_little_noise, "NOISE_TOO_LOW"),
    (declares_fewer_patients, "DECLARED_N_MISMATCH"),
    (books_on_another_account, "ACCOUNT_MISMATCH"),
    (promises_another_unit, "UNIT_MISMATCH"),
]


@pytest.mark.parametrize(("move", "reason"), MOVES, ids=[move.__name__ for move, _ in MOVES])
def test_a_move_is_refused(crooked: Crooked, template: bytes, move: Move, reason: str) -> None:
    """By its own reason, with a sentence, before anything is reserved or opened."""
    order = move(pb.WorkOrder.FromString(template), engineer_key(crooked.federation))
    found, sentence = crooked.order(NODE, order)
    assert found == reason, sentence
    assert sentence.endswith(".")


def test_what_was_signed_is_used_once(crooked: Crooked, template: bytes) -> None:
    """Each round is worked at a few times at most, never an earlier one, by one engineer's one
    text, until the job has ended; signed anew for a resumption it goes on, and the old text is
    void."""
    key = engineer_key(crooked.federation)
    first = null_order(template, key).SerializeToString()

    def order(round_: int, change: Callable[[pb.WorkOrder], pb.WorkOrder] | None = None) -> str:
        made = pb.WorkOrder.FromString(first)
        made.round = round_
        return crooked.order(NODE, change(made) if change else made, booked=True)[0]

    assert [order(1) for _ in range(5)] == ["", "", "", "", "ROUND_REPEATED"]
    assert [order(3), order(2)] == ["", "ROUND_NOT_ADVANCING"]
    assert order(4, lambda one: signed_by(CAROL, one, lambda it: it)) == "MANDATE_OTHER_ENGINEER"
    more = lambda one: signed_by(key, one, lambda it: replace(it, rounds_max=9))  # noqa: E731
    assert order(4, more) == "MANDATE_REWRITTEN"
    crooked.send(NODE, job_ended=pb.JobEnded(job_id=pb.WorkOrder.FromString(first).job_id))
    assert order(4) == "JOB_OVER"
    anew = lambda one: signed_by(key, one, lambda it: replace(it, resumption=1))  # noqa: E731
    assert order(4, anew) == ""
    assert order(5) == "MANDATE_SUPERSEDED"


def test_an_attempt_is_one_order(crooked: Crooked, template: bytes) -> None:
    """Sent again it is answered as before and costs nothing; with other terms it is refused."""
    order = null_order(template, engineer_key(crooked.federation))
    assert crooked.order(NODE, order, booked=True) == ("", "")
    entries = own_entries(crooked)
    assert crooked.order(NODE, order, again=True) == ("", "")
    order.round = 2
    assert crooked.order(NODE, order, again=True)[0] == "ATTEMPT_CONFLICT"
    assert own_entries(crooked) == entries


def own_entries(crooked: Crooked) -> int:
    found = cli_json("agent", "status", "--dir", str(crooked.federation.agent(NODE)))
    return int(found["ledger"]["entries"])


DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs/hospital-it.md"


def test_the_table_in_the_document_is_these_moves() -> None:
    """Each row names a move, the reason that it is refused with, and the test."""
    rows = re.findall(r"^\| .+ \| `([A-Z_]+)` \| `(\w+)` \|$", DOCUMENT.read_text(), re.MULTILINE)
    moves = {(reason, move.__name__) for move, reason in MOVES}
    once = {
        (reason, "test_what_was_signed_is_used_once")
        for reason in (
            "ROUND_REPEATED",
            "ROUND_NOT_ADVANCING",
            "MANDATE_OTHER_ENGINEER",
            "MANDATE_REWRITTEN",
            "JOB_OVER",
            "MANDATE_SUPERSEDED",
        )
    }
    assert set(rows) == moves | once | {("ATTEMPT_CONFLICT", "test_an_attempt_is_one_order")}
