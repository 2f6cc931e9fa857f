"""The name that a folder's accounts carry: a machine joins by it, whatever coordinator it asks."""

from typing import Final

from node_agent.folder.config import Folder
from node_agent.joining.identity import Identity
from protos.errors import Malformed, NotFound

NOT_USED_UP: Final = "It was not used up: whoever it is for can still join with it"
USED_UP: Final = "It is used up, as this coordinator is of an older version that looks at no name"


def kept_name(folder: Folder, former: Identity | None) -> str:
    """Whose ledger a folder keeps; empty for none.

    Args:
        former: what the folder was until now.

    Raises:
        Malformed: LEDGER_INVALID.
        NotFound: LEDGER_MISSING, it is there and empty.
    """
    if not folder.state_db.exists():
        return former.node if former is not None else ""
    if not folder.has_ledger:
        raise NotFound(
            "LEDGER_MISSING",
            f"{folder.state_db} is empty, and this machine would begin with nothing spent: put a "
            "copy of its ledger in that place. Only if no node has ever worked here, remove that "
            "empty file and join again",
        )
    # It loads what an agent needs, which a first join does not.
    from node_agent.ledger.copies import node_of_ledger

    return node_of_ledger(folder)


def for_another(folder: Folder, node: str, token: str) -> Malformed:
    """How a join is refused whose token is not for the node whose ledger the folder keeps.

    Args:
        token: what has become of it.
    """
    return Malformed(
        "TOKEN_FOR_ANOTHER_NODE",
        f"the token is for another node, and the accounts in {folder.root} are node {node}'s: ask "
        f"the coordinator's operator for a token for {node} (`feddp node token {node}`), or join "
        f"with this one in another --dir. {token}; the folder is as it was",
    )
