"""The steward's two files, read again whenever they changed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from node_agent.config import Folder
from node_agent.datasets import DataSetSpec, load_data_sets
from node_agent.policy import Policy, load_policy
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
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._seen: tuple[object, ...] | None = None
        self._rules: Rules | None = None
        self.fault = ""

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
        return found

    def _read(self) -> Rules:
        policy = load_policy(self._folder.policy_yaml)
        rules = Rules(policy, tuple(load_data_sets(self._folder.root)))
        require_accounts(rules.data_sets, [one.name for one in policy.accounts])
        _require_signed(rules)
        return rules

    def stamp(self) -> tuple[object, ...]:
        """Differs from an earlier one when a file was written since."""
        return self._stamp()

    def _stamp(self) -> tuple[object, ...]:
        return (_stamp(self._folder.policy_yaml), _stamp(self._folder.datasets_yaml))


def require_accounts(data_sets: Sequence[DataSetSpec], accounts: Collection[str]) -> None:
    """Each data set is paid by an account that there is.

    Raises:
        Malformed: DATASETS_INVALID.
    """
    known = ", ".join(accounts) or "none"
    for one in data_sets:
        if one.account not in accounts:
            raise Malformed(
                "DATASETS_INVALID",
                f"datasets.yaml: data set {one.name} is paid by account {one.account}, and "
                f"policy.yaml has no such account; it has: {known}",
            )


def _require_signed(rules: Rules) -> None:
    for one in rules.data_sets:
        if not rules.policy.is_signed_for(one.name, one.account):
            raise Malformed(
                "DATA_SET_UNSIGNED",
                f"datasets.yaml: data set {one.name} is paid by account {one.account}, and "
                f"{rules.policy.disjoint_signed_by} has not signed that its patients are in no "
                "other account: `feddp agent vouch` signs the data sets as they are declared now",
            )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
