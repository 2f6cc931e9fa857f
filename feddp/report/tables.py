"""The report's tables. Every word that is not ours is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from feddp.evaluation import Evaluation
from protos.feddp.v1.budgets_pb2 import BudgetAccount
from protos.feddp.v1.jobs_pb2 import Job, JobNode, Participation

OUTCOMES = {
    "update": ("✓", "update received"),
    "no_update": ("○", "data opened, no update"),
    "refused": ("✕", "refused by the hospital"),
    "late": ("»", "too late for the round"),
    "lost": ("!", "connection lost"),
    "left_out": ("–", "not asked"),
}
_PENDING = ("·", "no outcome yet")


def epsilon(value: float) -> str:
    """Rounded up in the fourth significant digit, so that no figure here flatters."""
    if not value:
        return "0"
    shown = f"{value:.4g}"
    step = 10.0 ** (_exponent(value) - 3)
    return shown if float(shown) >= value else f"{float(shown) + step:.4g}"


def small(value: float) -> str:
    """1e-5, not 1e-05."""
    return f"{value:g}".replace("e-0", "e-")


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def hospitals(job: Job) -> str:
    """The job's epsilon at each hospital beside its account's limit and guarantee."""
    target = ["Target of this job"] if job.target_epsilon else []
    terms = ["Limit now", "Guarantee", "Delta"]
    heads = ["Hospital", "Class", "Running epsilon", *target, *terms, "Rounds"]
    return table(heads, (_hospital(node, job) for node in job.nodes), "numbers")


def _hospital(node: JobNode, job: Job) -> list[str]:
    known = node.HasField("epsilon_spent") or not node.rounds_participated
    limit = node.account_epsilon_limit or (0.0 if job.target_epsilon else node.epsilon_limit)
    spent = epsilon(node.epsilon_spent) if known else "none: no guarantee"
    if known and node.epsilon_limit:
        share = min(1.0, node.epsilon_spent / node.epsilon_limit)
        spent += f' <span class="meter"><i style="width:{share:.0%}"></i></span>'
    return [
        escape(node.name),
        escape(node.node_class),
        spent,
        *([epsilon(job.target_epsilon)] if job.target_epsilon else []),
        epsilon(limit) if limit else "–",
        _guarantee(node, told=bool(node.account_epsilon_limit)),
        small(node.delta) if node.delta and known else "–",
        str(node.rounds_participated),
    ]


def _guarantee(of: JobNode | BudgetAccount, *, told: bool) -> str:
    """The highest limit ever; a coordinator of 0.1.0 does not tell it."""
    if of.HasField("epsilon_guarantee"):
        return epsilon(of.epsilon_guarantee)
    return "<strong>none, for ever</strong>" if told else "–"


def accounts(given: Sequence[BudgetAccount]) -> str:
    """The accounts that pay, over all jobs."""
    rows = (
        [
            escape(account.account),
            escape(", ".join(account.data_sets)),
            escape(account.filter) + (f" {account.rdp_order}" if account.rdp_order else ""),
            epsilon(account.epsilon_spent) if account.HasField("epsilon_spent") else "none",
            epsilon(account.epsilon_booked) if account.HasField("epsilon_booked") else "–",
            epsilon(account.epsilon_naive) if account.HasField("epsilon_naive") else "–",
            f"{account.efficiency:.3f}" if account.HasField("efficiency") else "–",
            f"{account.booked_to_naive:.3f}" if account.HasField("booked_to_naive") else "–",
            epsilon(account.epsilon_limit),
            _guarantee(account, told=not account.guarantee),
            small(account.delta),
        ]
        for account in given
    )
    heads = [
        "Account",
        "Data sets",
        "Filter",
        "Running epsilon, all jobs",
        "Booked",
        "Naive sum",
        "Efficiency",
        "Of naive",
        "Limit now",
        "Guarantee",
        "Delta",
    ]
    return table(heads, rows, "numbers")


def participation(job: Job) -> str:
    """Who took part in which round, and below it who did not and why."""
    names = _names(job)
    cells: dict[tuple[str, int], Participation] = {
        (each.node, number.number): each for number in job.rounds for each in number.participation
    }
    heads = ["Hospital", *(str(number.number) for number in job.rounds)]
    rows = (
        [escape(name), *(_cell(cells.get((name, number.number))) for number in job.rounds)]
        for name in names
    )
    used = {each.outcome for each in cells.values()}
    key = " · ".join(
        f"{sign} {words}" for outcome, (sign, words) in OUTCOMES.items() if outcome in used
    )
    return f'{table(heads, rows, "matrix")}<p class="small">{key}</p>{_absences(job)}'


def _names(job: Job) -> list[str]:
    seen = {node.name: None for node in job.nodes}
    seen |= {each.node: None for number in job.rounds for each in number.participation}
    return list(seen)


def _cell(each: Participation | None) -> str:
    if each is None:
        return '<span class="o-none" title="not part of it">·</span>'
    sign, words = OUTCOMES.get(each.outcome, _PENDING)
    why = f": {each.reason}" if each.reason else ""
    known = each.outcome if each.outcome in OUTCOMES else "none"
    return f'<span class="o-{known}" title="{escape(words + why)}">{sign}</span>'


def _absences(job: Job) -> str:
    rows = [
        [
            str(number.number),
            escape(each.node),
            OUTCOMES.get(each.outcome, _PENDING)[1],
            f"{escape(each.message or each.reason)}"
            + (f" <code>{escape(each.reason)}</code>" if each.message and each.reason else ""),
        ]
        for number in job.rounds
        for each in number.participation
        if each.outcome != "update"
    ]
    if not rows:
        return "<p>Every hospital's update was in every round.</p>" if job.rounds else ""
    return table(["Round", "Hospital", "Outcome", "Why"], rows)


def evaluation(found: Evaluation) -> str:
    """Figures that hospitals released with noise."""
    rows = [
        [name, "hidden by the noise", "–"]
        if figure is None
        else [name, f"{figure.value:.3f}", f"{figure.standard_error:.3f}"]
        for name, figure in found.figures().items()
    ]
    return table(["Figure", "Value", "Standard error"], rows, "numbers")


def test_metrics(metrics: Mapping[str, Any]) -> str:
    """Pooled figures, then each hospital's."""
    rows = [_metric_row("all, pooled", metrics)]
    rows += [
        _metric_row(str(name), values)
        for name, values in (metrics.get("per_node") or {}).items()
        if isinstance(values, Mapping)
    ]
    return table(["Held-out rows of", "Accuracy", "AUC", "Brier"], rows, "numbers")


def _metric_row(name: str, values: Mapping[str, Any]) -> list[str]:
    return [escape(name), *(_figure(values.get(key)) for key in ("accuracy", "auc", "brier"))]


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"
