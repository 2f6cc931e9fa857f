"""Who may call what: one table, and whatever is not in it is refused."""

from dataclasses import dataclass
from typing import Final, Literal

from protos.errors import NotAllowed

Role = Literal["operator", "engineer", "privacy-officer", "node"]

PEOPLES_ROLES: Final = ("operator", "engineer", "privacy-officer")
"""What a person may be; a node is nothing else."""

_PEOPLE: frozenset[str] = frozenset(PEOPLES_ROLES)
_OF_EVERY_PROJECT: frozenset[str] = frozenset({"operator", "privacy-officer"})
_TRAINING: frozenset[str] = frozenset({"engineer", "node"})

RULES: dict[str, frozenset[str]] = {
    "Federation/Session": frozenset({"node"}),
    "Federation/SubmitUpdate": frozenset({"node"}),
    "Diagnosis/Probe": frozenset({"node"}),
    "Renewal/Renew": _PEOPLE | {"node"},
    "Renewal/Confirm": _PEOPLE,
    "Witness/ReadHeads": frozenset({"node"}),
    "Witness/ReadEntries": frozenset({"node"}),
    "Witness/Countersign": frozenset({"node"}),
    "Witness/HandIn": frozenset({"node"}),
    "Transfer/Download": _TRAINING | {"operator", "privacy-officer"},
    "Transfer/Upload": _TRAINING,
    "Transfer/UploadStatus": _TRAINING,
    "Nodes/CreateToken": frozenset({"operator"}),
    "Nodes/ListNodes": _PEOPLE,
    "Nodes/GetNode": _PEOPLE,
    "Nodes/DisableNode": frozenset({"operator"}),
    "Nodes/EnableNode": frozenset({"operator"}),
    "Nodes/ApproveJoin": frozenset({"operator"}),
    "Nodes/RejectJoin": frozenset({"operator"}),
    "Nodes/ReleaseNode": frozenset({"operator"}),
    "Nodes/RevokeNode": frozenset({"operator"}),
    "Users/InviteUser": frozenset({"operator"}),
    "Users/ListUsers": frozenset({"operator"}),
    "Users/RevokeUser": frozenset({"operator"}),
    "Operations/PauseAll": frozenset({"operator"}),
    "Operations/ResumeAll": frozenset({"operator"}),
    "Operations/GetPause": _PEOPLE,
    "Jobs/SubmitJob": frozenset({"engineer"}),
    "Jobs/ListJobs": _PEOPLE,
    "Jobs/GetJob": _PEOPLE,
    "Jobs/WatchJob": _PEOPLE,
    "Jobs/CancelJob": frozenset({"operator", "engineer"}),
    "Jobs/ResumeJob": frozenset({"engineer"}),
    "Jobs/QuoteJob": frozenset({"engineer"}),
    "Budgets/ListAccounts": _PEOPLE,
    "Budgets/ListEntries": _PEOPLE,
    "Budgets/ListCheckpoints": _PEOPLE,
    "Models/ListModels": _PEOPLE,
    "Models/GetModel": _PEOPLE,
}
"""`Service/Method` -> roles that may call it. The enrolment port serves Enrollment alone."""

WITHOUT_CERTIFICATE = frozenset(
    f"Enrollment/{method}" for method in ("Join", "JoinUser", "Challenge", "Recover")
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the certificate and the registry say.

    Attributes:
        node: the node's name, or empty for people.
        project: an engineer's; whose jobs they submit and resume.
    """

    name: str
    roles: frozenset[str]
    project: str = ""
    node: str = ""

    def sees(self, project: str) -> bool:
        """Whether a project's jobs and models are shown to them: to engineers those of their own,
        to operators and privacy officers every one's.
        """
        return project == self.project or not _OF_EVERY_PROJECT.isdisjoint(self.roles)


def allow(method: str, caller: Caller) -> None:
    """Return if `caller` may call `Service/Method`.

    Raises:
        NotAllowed: ROLE_REQUIRED.
    """
    roles = RULES.get(method, frozenset())
    if not roles & caller.roles:
        needed = " or ".join(sorted(roles))
        why = f"it needs the role {needed}" if needed else "no role may"
        raise NotAllowed("ROLE_REQUIRED", f"{caller.name} may not call {method}: {why}")
