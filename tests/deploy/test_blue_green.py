"""deploy/upgrade/blue_green.py with real processes: to a release that needs a stop, and back."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feddp.demo.ports import free_ports
from protos.errors import FeddpError
from tests.deploy.versions import (
    Service,
    next_release,
    printed_json,
    script,
    version_folder,
    way_back,
)
from tests.integration.federation import NODES, Federation, job_file, wait_for
from tests.integration.test_failures import check_books, per_round, rounds_done

ROUNDS = 30


class Pair(Federation):
    """A coordinator, blue, and the folder where green will be; both have the same ports."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.service = Service(folder / "service")
        self.now = version_folder(folder / "versions", "now")
        self.following = next_release(folder / "next", older_may_serve=False)
        self.blue, self.green = self.installation.folder, folder / "green"
        for name, own in (("blue", self.blue), ("green", self.green)):
            self.service.add(name, own / "coordinator.yaml", folder / f"{name}.log")
        self.service.switch("blue", self.now)
        self.backup = folder / "upgrade.backup"

    def options(self, *more: object) -> list[object]:
        """What the script is given."""
        return [
            *("--dir", self.blue, "--green-dir", self.green),
            *("--old", self.now, "--new", self.following, "--backup", self.backup),
            *("--replica", f"blue={self.health}", "--replica", f"green={self.health}"),
            *self.service.options,
            *more,
        ]

    def close(self) -> None:
        """End everything."""
        self.stop()
        self.service.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Blue serves three nodes, and a job is under way."""
    pair = Pair(tmp_path)
    try:
        pair.service.start("blue")
        wait_for("blue answers", lambda: answers(pair))
        for name in NODES[:3]:
            pair.add_node(name)
            pair.start(name)
        pair.wait_for_nodes(*NODES[:3])
        yield pair
    finally:
        pair.close()


def answers(pair: Federation) -> bool:
    """Whether whoever serves answers."""
    try:
        with pair.client() as client:
            client.nodes()
    except FeddpError:
        return False
    return True


def submitted(pair: Pair) -> str:
    """A job that is in its second round or further."""
    job_id = pair.submit(
        job_file(
            federation={"rounds": ROUNDS},
            privacy={"target_epsilon": None, "noise_multiplier": 30.0},
        )
    )
    rounds_done(pair, job_id, 2)
    return job_id


def verified(version: Path, folder: Path) -> Any:
    """What a version says of a ledger."""
    return printed_json(version, "budget", "verify", "--dir", folder)


def test_green_goes_on_where_blue_stopped(pair: Pair) -> None:
    """A release whose migration needs a stop: the job goes on there and every round is charged
    once; what blue left is as it was, and blue could not serve green's tables."""
    job_id = submitted(pair)
    done = script("blue_green", *pair.options("--run"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not pair.service.runs("blue")
    left = verified(pair.now, pair.blue)
    after = pair.wait_for_end(job_id)
    assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
    assert verified(pair.now, pair.blue) == left
    assert left["entries"] < verified(pair.following, pair.green)["entries"] == ROUNDS * 3 * 2
    ledger = printed_json(pair.following, "budget", "ledger", "--dir", pair.green)
    kinds = [(one["attempt_id"], one["kind"]) for one in ledger["entries"]]
    assert len(kinds) == len(set(kinds))
    refused = subprocess.run(
        [pair.now / "bin/feddp", "coordinator", "check", "--dir", pair.green],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "upgraded by a newer version" in refused.stdout


def test_the_way_back_that_is_printed_has_blue_go_on(pair: Pair) -> None:
    """Green is not ready where it is asked: the script stops, and its commands bring the job to an
    end with every round charged once."""
    job_id = submitted(pair)
    config = pair.installation.config.read_text()
    # It serves, nodes come to it, and it books nothing, as it is paused.
    break_it = f"sed -i s/{pair.health[-5:]}/{free_ports(1)[0]}/ {pair.green}/coordinator.yaml"
    done = script(
        "blue_green",
        *pair.options("--copy", f"cp -a {pair.blue} {pair.green}", "--copy", break_it),
        *("--wait-s", 15, "--run"),
    )
    assert done.returncode == 1, done.stdout
    assert "stopped at step 10" in done.stdout, done.stdout
    assert pair.installation.config.read_text() == config
    for command in way_back(done.stdout):
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    after = pair.wait_for_end(job_id)
    assert (after.status, after.rounds_done) == ("completed", ROUNDS), after.message
    check_books(pair, after)
    assert set(per_round(pair).values()) == {1}


def test_rolling_is_refused_where_a_stop_is_needed(pair: Pair) -> None:
    """Before anything is changed, by the script; and by the next release itself, started beside."""
    options = pair.options()
    options[2:4] = []  # the folder of green
    # Nodes look at the ledger a moment after they connect, which makes the first checkpoint.
    wait_for("the first checkpoint", lambda: verified(pair.now, pair.blue)["roots_checked"])
    before = verified(pair.now, pair.blue)
    done = script("rolling", *options, "--run")
    assert done.returncode == 1
    assert "need a stop: use blue_green.py" in done.stdout
    assert "nothing was changed" in done.stdout
    assert not pair.backup.exists()
    beside = subprocess.run(
        [pair.following / "bin/feddp", "coordinator", "serve", "--dir", pair.blue],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert beside.returncode == 2
    assert "a coordinator of an older version" in beside.stderr
    assert "Stop every coordinator of the older version" in beside.stderr
    assert answers(pair)
    assert verified(pair.now, pair.blue) == before
    plan = json.loads(
        subprocess.run(
            [
                *(pair.following / "bin/feddp", "coordinator", "upgrade", "--plan"),
                *("--dir", pair.blue, "--json"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    )
    assert plan["needs_stop"]
    assert plan["served_by"]
