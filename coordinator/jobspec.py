"""A job as an engineer writes it, and as the coordinator runs it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import ValidationError, ValidationInfo, field_validator

from coordinator.config.keys import OutOfBoundsError, Section, key, problems
from coordinator.config.sections import CoordinatorConfig
from coordinator.config.strict_yaml import read_mapping
from privacy.filters import EPSILON_MIN
from privacy.releases import GRAD_NORM_MIN
from protos.errors import Malformed, invariant
from protos.yaml_slips import EXPONENT

_T = TypeVar("_T")

REASON = "JOB_INVALID"
SPEC_BYTES_MAX = 64 << 10
DEADLINE_S_MAX = 604_800
PARTICIPANTS_MAX = 10_000
NULL_TASK = "null"
"""The task that reads no data and therefore releases nothing that could be charged."""

EVALUATION_TASK = "tabular-evaluation"
"""The task that trains nothing: one release of counts, every patient in it, in one round."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_NAME_WORDS = "1 to 100 of letters, digits, '.', '_', '-'"
_DURATION = re.compile(r"([0-9]{1,7})(s|m|h)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, None: 1}


class JobSection(Section):
    """A section of the job file: a number is written as one."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_text(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        wanted = {annotation, *get_args(annotation)} & {int, float}
        if wanted and isinstance(value, str) and _is_quoted_number(value):
            whole = "whole number" if int in wanted else "number"
            raise ValueError(f"must be a {whole}, without quotes")
        return value


class FederationSpec(JobSection):
    """How the rounds of this job run; what is left out comes from the coordinator."""

    aggregation_method: Literal["fedprox"] = key("fedprox", "How a round trains and averages.")
    proximal_mu: float | None = key(None, "FedProx's pull.", ge=0, le=1000)
    min_participants: int | None = key(None, "Fewest nodes in a round.", ge=2, le=PARTICIPANTS_MAX)
    max_rounds: int | None = key(None, "Most rounds.", ge=1)
    rounds: Any = key(
        "auto", "Rounds planned.", allowed="auto, or a whole number from 1 to max_rounds"
    )
    local_steps: int | None = key(None, "Steps of a node in one round.", ge=1, le=10_000)
    convergence_threshold: float | None = key(None, "See the coordinator's.", gt=0, le=1)
    deadline: Any = key(
        None, "Longest wait in a round.", allowed='"300s", "5m", "2h" or whole seconds, up to 168h'
    )
    participants: int | None = key(None, "Nodes wanted in a round; all without it.", ge=2)
    over_selection: float = key(
        0.0, "Share of nodes that are ordered above `participants`.", ge=0, le=1
    )
    grace: float | None = key(None, "See the coordinator's grace_factor.", ge=0, le=1000)
    update_dtype: Literal["float32", "bfloat16", "int8"] = key(
        "float32", "How the values of an update travel."
    )

    @field_validator("min_participants")
    @classmethod
    def _not_below_the_coordinators(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = _defaults(info).federation.min_participants
        if value is not None and value < least:
            raise OutOfBoundsError(
                f"is below this coordinator's minimum of {least}",
                f"at least {least}, at most {PARTICIPANTS_MAX}",
            )
        return value

    @field_validator("participants")
    @classmethod
    def _at_least_the_fewest(cls, value: int | None, info: ValidationInfo) -> int | None:
        fewest = info.data.get("min_participants") or _defaults(info).federation.min_participants
        if value is not None and value < fewest:
            text = f"is below min_participants, which is {fewest}"
            raise OutOfBoundsError(text, f"at least {fewest}")
        return value

    @field_validator("over_selection")
    @classmethod
    def _above_something(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("participants") is None:
            raise ValueError("is a share of federation.participants; give that too")
        return value

    @field_validator("max_rounds")
    @classmethod
    def _not_above_the_coordinators(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = _defaults(info).federation.max_rounds
        if value is not None and value > most:
            text = f"is above this coordinator's maximum of {most}"
            raise OutOfBoundsError(text, f"at least 1, at most {most}")
        return value

    @field_validator("rounds")
    @classmethod
    def _auto_or_number(cls, value: object, info: ValidationInfo) -> object:
        if value == "auto":
            return value
        if not isinstance(value, int):
            raise ValueError("must be auto or a whole number")
        most = info.data.get("max_rounds") or _defaults(info).federation.max_rounds
        if not 1 <= value <= most:
            raise ValueError(f"is out of bounds; max_rounds is {most}")
        return value

    @field_validator("rounds", "local_steps", "update_dtype")
    @classmethod
    def _an_evaluation_is_one_release(cls, value: object, info: ValidationInfo) -> object:
        usual = {"rounds": ("auto", 1), "local_steps": (None, 1), "update_dtype": ("float32",)}
        if _context(info)["task"] == EVALUATION_TASK:
            name = str(info.field_name)
            if value not in usual[name]:
                raise ValueError(
                    f"an evaluation is one release of counts in one round; leave {name} out"
                )
        return value

    @field_validator("deadline")
    @classmethod
    def _seconds(cls, value: object) -> int | None:
        if value is None:
            return None
        found = _DURATION.fullmatch(str(value)) if isinstance(value, (str, int)) else None
        if found is None:
            raise ValueError("is not a duration in whole seconds, minutes or hours")
        seconds = int(found[1]) * _SECONDS[found[2]]
        if not 1 <= seconds <= DEADLINE_S_MAX:
            raise ValueError("is out of bounds")
        return seconds


class PrivacySpec(JobSection):
    """What the job promises to each data set."""

    mechanism: Literal["none"] | None = key(
        None, "none: no noise and no guarantee.", allowed="none, or leave it out"
    )
    target_epsilon: float | None = key(None, "Epsilon of the whole job.", ge=EPSILON_MIN, le=1000)
    noise_multiplier: float | None = key(None, "Noise over the bound.", gt=0, le=1e6)
    delta: float | None = key(None, "Delta of target_epsilon.", ge=1e-30, le=0.1)
    max_grad_norm: float | None = key(None, "Clipping bound per patient.", ge=GRAD_NORM_MIN, le=1e6)
    batch_size: int | None = key(None, "Expected patients in a step.", ge=1, le=1_000_000)

    @field_validator("target_epsilon", "noise_multiplier")
    @classmethod
    def _one_source_of_noise(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None:
            return None
        if info.data.get("mechanism") == "none":
            raise ValueError("mechanism: none adds no noise; leave one of the two out")
        if _context(info)["task"] == NULL_TASK:
            raise ValueError(f"the {NULL_TASK} task reads no data and has no noise; leave it out")
        if info.field_name == "noise_multiplier" and info.data.get("target_epsilon") is not None:
            raise ValueError(
                "target_epsilon fixes the noise already; give privacy.target_epsilon or"
                " privacy.noise_multiplier, never both"
            )
        return value

    @field_validator("max_grad_norm")
    @classmethod
    def _counts_have_no_gradient(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and _context(info)["task"] == EVALUATION_TASK:
            raise ValueError(
                "an evaluation has no gradients; a patient adds 1 to its counts; leave it out"
            )
        return value


class JobSpec(JobSection):
    """The job file."""

    name: str = key(
        ...,
        "For people; need not be unique.",
        pattern=r"^[^\p{Cc}\p{Cf}\u{2028}\u{2029}]{1,100}$",
        allowed="1 to 100 characters on one line",
    )
    task: str = key(..., "An installed task.", pattern=_NAME, allowed=_NAME_WORDS)
    task_config: dict[str, Any] = key({}, "The task's own settings.")
    dataset: str = key(
        ..., "The name that nodes publish it under.", pattern=_NAME, allowed=_NAME_WORDS
    )
    project: str = key("default", "That of whoever submits it.", pattern=_NAME, allowed=_NAME_WORDS)
    priority: int = key(
        0, "Among jobs that want the same nodes, a higher one goes first.", ge=-100, le=100
    )
    federation: FederationSpec = key(..., "Rounds.")
    privacy: PrivacySpec = key(..., "Noise.")

    @field_validator("task_config")
    @classmethod
    def _finite(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError("holds a number that is not finite") from None
        return value


@dataclass(frozen=True, slots=True)
class Job:
    """A job with nothing left open.

    Attributes:
        mechanism: "dp"; "none": clipped, no noise, no guarantee; "no_data": nothing is read.
        target_epsilon: per data set, for the whole job; None when the noise is fixed or absent.
        noise_multiplier: None when derived from `target_epsilon` or when there is no noise.
        rounds_planned: at most `max_rounds`.
        deadline_s: from a round's orders until it closes without who is missing, with a quorum.
        max_grad_norm: clipping bound per patient; 0 with "no_data".
        participants: nodes wanted in a round; 0 for all.
        over_selection: share of nodes that are ordered above `participants`.
        grace_factor: with a quorum, a node is waited for until so many times what its own slowest
            round took; 0 for until the deadline.
        update_dtype: how the values of an update travel.
        priority: among jobs that want the same nodes, a higher one goes first.
        full_batch: every step has every patient, also where many are declared.
    """

    name: str
    project: str
    task: str
    task_config: Mapping[str, Any]
    dataset: str
    aggregation_method: Literal["fedprox"]
    proximal_mu: float
    min_participants: int
    rounds_planned: int
    max_rounds: int
    local_steps: int
    convergence_threshold: float
    deadline_s: int
    mechanism: Literal["dp", "none", "no_data"]
    target_epsilon: float | None
    noise_multiplier: float | None
    delta: float
    max_grad_norm: float
    batch_size: int
    convergence_patience: int
    poisson_from_n: int
    # A job that an older coordinator stored has none of these.
    participants: int = 0
    over_selection: float = 0.0
    grace_factor: float = 0.0
    update_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    priority: int = 0
    full_batch: bool = False

    @property
    def task_config_json(self) -> str:
        """`task_config` as canonical JSON: sorted keys, no spaces, ASCII."""
        return json.dumps(
            dict(self.task_config), sort_keys=True, separators=(",", ":"), allow_nan=False
        )


def parse_job(spec_bytes: bytes, defaults: CoordinatorConfig) -> Job:
    """Check a job file and fill in what it leaves to the coordinator.

    Raises:
        Malformed: JOB_INVALID, with a line for every fault, each naming its key.
    """
    raw = read_mapping(spec_bytes, reason=REASON, where="job file", bytes_max=SPEC_BYTES_MAX)
    for name in ("federation", "privacy", "task_config"):
        if raw.get(name) is None:
            raw[name] = {}
    try:
        spec = JobSpec.model_validate(raw, context={"defaults": defaults, "task": raw.get("task")})
    except ValidationError as error:
        faults = [f"  {name}: {text}" for name, text in problems(error, JobSpec)]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise Malformed(
            REASON, f"{count} in the job file; nothing was changed:\n" + "\n".join(faults)
        ) from None
    return _resolve(spec, defaults)


def _resolve(spec: JobSpec, defaults: CoordinatorConfig) -> Job:
    rounds, noise = spec.federation, spec.privacy
    common, usual = defaults.federation, defaults.privacy
    max_rounds = _either(rounds.max_rounds, common.max_rounds)
    local_steps = _either(rounds.local_steps, common.local_steps)
    planned = rounds.rounds
    if planned == "auto":
        planned = min(math.ceil(common.planned_steps / local_steps), max_rounds)
    evaluates = spec.task == EVALUATION_TASK
    if evaluates:
        planned = local_steps = 1
    mechanism: Literal["dp", "none", "no_data"] = "none" if noise.mechanism else "dp"
    if spec.task == NULL_TASK:
        mechanism = "no_data"
    multiplier = noise.noise_multiplier
    if mechanism == "dp" and noise.target_epsilon is None:
        multiplier = _either(multiplier, usual.noise_multiplier)
    invariant(
        (mechanism == "dp") == ((multiplier is None) != (noise.target_epsilon is None)),
        "a job with noise has exactly one source of it",
    )
    return Job(
        name=spec.name,
        project=spec.project,
        task=spec.task,
        task_config=spec.task_config,
        dataset=spec.dataset,
        aggregation_method=rounds.aggregation_method,
        proximal_mu=_either(rounds.proximal_mu, common.proximal_mu),
        min_participants=_either(rounds.min_participants, common.min_participants),
        rounds_planned=planned,
        max_rounds=max_rounds,
        local_steps=local_steps,
        convergence_threshold=_either(rounds.convergence_threshold, common.convergence_threshold),
        deadline_s=_either(rounds.deadline, common.deadline_s),
        mechanism=mechanism,
        target_epsilon=noise.target_epsilon,
        noise_multiplier=multiplier,
        delta=_either(noise.delta, usual.delta),
        max_grad_norm=_max_grad_norm(spec, defaults),
        batch_size=_either(noise.batch_size, common.batch_size),
        convergence_patience=common.convergence_patience,
        poisson_from_n=common.poisson_from_n,
        participants=rounds.participants or 0,
        over_selection=rounds.over_selection,
        grace_factor=_either(rounds.grace, common.grace_factor),
        update_dtype=rounds.update_dtype,
        priority=spec.priority,
        full_batch=evaluates,
    )


def _max_grad_norm(spec: JobSpec, defaults: CoordinatorConfig) -> float:
    """What one patient may add; to the counts of an evaluation, 1."""
    if spec.task == NULL_TASK:
        return 0.0
    if spec.task == EVALUATION_TASK:
        return 1.0
    return _either(spec.privacy.max_grad_norm, defaults.privacy.max_grad_norm)


def _is_quoted_number(text: str) -> bool:
    """Whether it would be a number without its quotes; YAML 1.1 reads 1e-5 as text without any."""
    try:
        return EXPONENT.fullmatch(text) is None and math.isfinite(float(text))
    except ValueError:
        return False


def _either(given: _T | None, default: _T) -> _T:
    return default if given is None else given


def _context(info: ValidationInfo) -> Mapping[str, Any]:
    invariant(isinstance(info.context, dict), "a job file is checked by parse_job only")
    context: Mapping[str, Any] = info.context or {}
    return context


def _defaults(info: ValidationInfo) -> CoordinatorConfig:
    defaults: CoordinatorConfig = _context(info)["defaults"]
    return defaults
