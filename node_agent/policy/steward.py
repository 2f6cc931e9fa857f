"""The steward's two files, read again whenever they changed."""

import difflib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from node_agent.data.datasets import DataSetSpec, load_data_sets
from node_agent.folder.config import Folder
from node_agent.ledger.account_filters import account_faults
from node_agent.policy.policy import Policy, load_policy
from protos.errors import Malformed


@dataclass(frozen=True, slots=True)
class Rules:
    """What the steward says now."""

    policy: Policy
    data_sets: tuple[DataSetSpec, ...]


class Steward:
    """Reads `policy.yaml` and `datasets.yaml`; keeps them while the files stay the same.

    Attributes:
        fault: why the files as they are now were not taken, so that those of before are in force;
            empty when they are.
        slip: what in the rules in force names no data set, see `unknown_names`. The rest of them
            is in force all the same: keeping the rules of before would undo a withdrawal that
            stands beside a mistyped one.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        # Looked at several times in every attempt, so not joined anew each time.
        self._files = (os.fspath(folder.policy_yaml), os.fspath(folder.datasets_yaml))
        self._seen: tuple[object, ...] | None = None
        self._rules: Rules | None = None
        self.fault = ""
        self.slip = ""

    def rules(self) -> Rules:
        """The rules in force: of the files as they are or, while these are broken, of those that
        were read last. A file that was taken away allows nothing.

        Raises:
            Malformed: POLICY_INVALID, DATASETS_INVALID or DATA_SET_UNSIGNED; then nothing is
                allowed.
        """
        seen, rules = self._stamp(), self._rules
        # A local name: another thread may read the files at the same time.
        if rules is not None and seen == self._seen:
            return rules
        try:
            found, fault = self._read(), ""
        except Malformed as error:
            if rules is None or None in seen:
                self._rules = None
                raise
            found, fault = rules, error.message
        self._rules, self._seen, self.fault = found, seen, fault
        self.slip = unknown_names(found)
        return found

    def _read(self) -> Rules:
        policy = load_policy(self._folder.policy_yaml)
        rules = Rules(policy, tuple(load_data_sets(self._folder.root)))
        for fault in _faults_between(rules):
            raise fault
        return rules

    def stamp(self) -> tuple[object, ...]:
        """Differs from an earlier one when a file was written since."""
        return self._stamp()

    def _stamp(self) -> tuple[object, ...]:
        return tuple(map(_stamp, self._files))


def checked_rules(folder: Folder) -> Rules:
    """The rules of the files as they are, for whoever mends them: all that is wrong is told at
    once, also what leaves the rest in force.

    Raises:
        Malformed: POLICY_INVALID, DATASETS_INVALID or DATA_SET_UNSIGNED, the first one's; a line
            for each.
    """
    found: list[Malformed] = []
    policy = data_sets = None
    try:
        policy = load_policy(folder.policy_yaml)
    except Malformed as error:
        found.append(error)
    try:
        data_sets = load_data_sets(folder.root)
    except Malformed as error:
        found.append(error)
    if policy is None or data_sets is None:
        raise _together(found)
    rules = Rules(policy, tuple(data_sets))
    found += _faults_between(rules)
    texts = [slip] if (slip := unknown_names(rules)) else []
    texts += [f"policy.yaml: {one}" for one in account_faults(policy, data_sets)]
    found += [Malformed("POLICY_INVALID", one) for one in texts]
    if found:
        raise _together(found)
    return rules


def _together(found: Sequence[Malformed]) -> Malformed:
    return Malformed(found[0].reason, "\n".join(one.message for one in found))


def require_accounts(data_sets: Sequence[DataSetSpec], accounts: Collection[str]) -> None:
    """Each data set is paid by an account that there is.

    Raises:
        Malformed: DATASETS_INVALID.
    """
    for one in data_sets:
        if one.account not in accounts:
            raise _unpaid(one, accounts)


def _unpaid(spec: DataSetSpec, accounts: Collection[str]) -> Malformed:
    known = ", ".join(accounts) or "none"
    return Malformed(
        "DATASETS_INVALID",
        f"datasets.yaml: data set {spec.name} is paid by account {spec.account}, and "
        f"policy.yaml has no such account; it has: {known}",
    )


def _faults_between(rules: Rules) -> Iterator[Malformed]:
    """Of what the two files say together: each data set is paid by an account that there is, and
    that a steward has signed where there are several."""
    accounts = [one.name for one in rules.policy.accounts]
    for one in rules.data_sets:
        if one.account not in accounts:
            yield _unpaid(one, accounts)
        elif not rules.policy.is_signed_for(one.name, one.account):
            yield Malformed(
                "DATA_SET_UNSIGNED",
                f"datasets.yaml: data set {one.name} is paid by account {one.account}, and "
                f"{rules.policy.disjoint_signed_by} has not signed that its patients are in no "
                "other account: `feddp agent vouch` signs the data sets as they are declared now",
            )


def unknown_names(rules: Rules) -> str:
    """What the policy withdraws or allows and no data set is called, with the nearest name; empty
    where there is nothing of the kind."""
    known = [one.name for one in rules.data_sets]
    listed = [
        *(("withdrawn", name, "withdraws") for name in rules.policy.withdrawn),
        *(("allow", one.data_set, "allows") for one in rules.policy.allow),
    ]
    return "; ".join(
        f"policy.yaml: {key} names {name}, which no data set of datasets.yaml is called, and so "
        f"{does} nothing{_nearest(name, known)}"
        for key, name, does in dict.fromkeys(listed)
        if name not in known
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f": did you mean {near[0]}?"
    return f"; declared there: {', '.join(known) or 'none'}"


def require_known_names(rules: Rules) -> None:
    """Everything that the policy withdraws or allows is a declared data set.

    Raises:
        Malformed: POLICY_INVALID.
    """
    if text := unknown_names(rules):
        raise Malformed("POLICY_INVALID", text)


def in_force(folder: Folder, *, running: bool) -> str:
    """What holds while the steward's files cannot be taken, a sentence without its full stop."""
    if not running:
        return "An agent does not start on it"
    for path in (folder.policy_yaml, folder.datasets_yaml):
        if not path.exists():
            return f"Nothing is allowed while {path.name} is gone"
    return (
        "The agent that runs goes on by the rules that it read before, if neither file was gone "
        "since"
    )


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
