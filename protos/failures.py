"""Kinds of failures of an attempt, in words and with what to do: the same at the hospital and,
where it may be told, at the coordinator. Nothing here comes from records."""

from typing import Final

AFTER_OPENING: Final[dict[str, tuple[str, str]]] = {
    "DATA_PROBLEM": (
        "the records are not as the data set declares them",
        "mend the file or its declaration in datasets.yaml, and raise the data set's version",
    ),
    "OUT_OF_MEMORY": (
        "the worker was ended for want of memory",
        "give workers more (agent.yaml, worker.memory_bytes_max; the machine's or the scheduler's "
        "limit), or ask for a smaller model",
    ),
    "WORKER_DIED": (
        "the worker ended in the middle of its work",
        "read its log below; if it ends without a word, the machine or its scheduler ended it",
    ),
    "TOO_LONG": (
        "training took longer than the time that was fixed before the data was opened",
        "look for what else kept the machine busy, or declare the data set's true size",
    ),
    "TASK_FAILED": (
        "the task's program failed",
        "send the place that the log names to whoever maintains the task; it holds no record",
    ),
    "UPDATE_UNREADABLE": (
        "the update that the worker wrote was not there whole",
        "check the disk below the spool folder",
    ),
    "AGENT_RESTARTED": (
        "the agent ended while the data was open; what was trained is lost and is not done again",
        "nothing for this attempt: a further one has a charge of its own. Find out in the agent's "
        "log why it ended",
    ),
}
"""Once the data was open: class -> (what happened, what to do). The class itself may depend on
records; it stays in the hospital unless the policy shares it."""

BEFORE_OPENING: Final[dict[str, str]] = {
    "WORKER_FAILED": "the hospital's IT finds the reason with `feddp agent logs JOB`",
    "TASK_UNAVAILABLE": "the hospital's IT finds the reason with `feddp agent logs JOB`",
    "SOURCE_MISSING": "its data steward puts the file back, or corrects datasets.yaml",
    "SPOOL_FULL": "its IT frees room on the disk of the agent's folder",
    "MODEL_UNAVAILABLE": "check the network to the coordinator or, where every node says "
    "DIGEST_MISMATCH or MODEL_SHORT, the disk of the coordinator's models; the job goes on by "
    "itself",
    "MODEL_INVALID": "submit the job again with the initial model of this task",
    "TOO_SLOW": "give the job a longer deadline",
    "STARTED_LATE": "nothing: the next order finds the node ready",
    "STEPS_TOO_MANY": "nothing: the next order asks for as many",
    "REQUEST_MALFORMED": "its IT compares the versions of the agent's packages",
}
"""While the data is not open: reason -> what to do, which may be told to everybody."""


WHAT_TO_DO: Final = " What to do: "


def told(reason: str, message: str) -> str:
    """A refusal's sentence with what to do after it."""
    remedy = BEFORE_OPENING.get(reason, "")
    return f"{message}{WHAT_TO_DO}{remedy}." if remedy else message
