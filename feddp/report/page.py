"""One self-contained HTML page about one job."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from typing import Any

from feddp.evaluation import Evaluation
from feddp.report import charts, claim, tables
from protos.feddp.v1.budgets_pb2 import BudgetAccount
from protos.feddp.v1.jobs_pb2 import Job, Round

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever a name in the job may hold, the browser fetches and runs nothing."""

_STATUS = {
    "running": "Running",
    "waiting": "Waiting",
    "converged": "Converged",
    "completed": "Completed",
    "budget_exhausted": "Stopped: too few hospitals could pay another round",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
_PHASES = ("reserving", "training", "aggregating", "publishing")
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))


def render(
    job: Job,
    *,
    metrics: Mapping[str, Any] | None,
    accounts: Sequence[BudgetAccount] | None,
    spec: bytes,
    evaluation: Evaluation | None = None,
) -> str:
    """The report as HTML text: no script, no font and no address outside itself.

    Args:
        job: with its rounds.
        metrics: test figures of the answer, `{"accuracy", "auc", "brier", "per_node": {NAME:
            {"accuracy", "auc"}}}`; None when nothing was evaluated.
        accounts: the privacy accounts that pay; None when they are not known.
        spec: the job file, byte for byte.
        evaluation: what the job found, if it is an evaluation of a model at the hospitals.
    """
    kind = claim.kind_of(job, spec)
    style = files("feddp.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "".join(
        [
            _summary(job),
            _privacy(job, kind, accounts, bool(metrics)),
            _metrics(metrics),
            _evaluation(evaluation),
            _rounds(job),
            _details(job, spec),
        ]
    )
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(job.name)}: training report</title><style>{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _summary(job: Job) -> str:
    status = escape(_STATUS.get(job.status, job.status))
    facts = [
        ("Rounds", f"{job.rounds_done} of {job.rounds_planned} planned"),
        ("Hospitals", str(len(job.nodes))),
        ("Highest running epsilon", _highest_epsilon(job)),
        ("Time", _duration(job)),
    ]
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    waiting = "".join(
        f"<li>{escape(each.node or 'the job')}: {escape(each.message or each.reason)}</li>"
        for each in job.waiting
    )
    return (
        f"<header><p class=small>Federated training of {escape(job.task)} on"
        f" {escape(job.data_set)}</p><h1>{escape(job.name)}</h1>"
        f'<p class="status {"good" if job.status in ("converged", "completed") else "other"}">'
        f"{status}</p>"
        + (f"<p>{escape(job.message)}</p>" if job.message else "")
        + (f"<p>Waits for:</p><ul>{waiting}</ul>" if waiting else "")
        + f"<dl class=cards>{cards}</dl></header>"
    )


def _highest_epsilon(job: Job) -> str:
    released = [node for node in job.nodes if node.rounds_participated]
    if any(not node.HasField("epsilon_spent") for node in released):
        return "none: no guarantee"
    spent = max((node.epsilon_spent for node in released), default=0.0)
    return tables.epsilon(spent) if spent else "0"


def _duration(job: Job) -> str:
    if not job.ended_at:
        return "not ended"
    seconds = max(0, round(job.ended_at - job.created_at))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def _privacy(
    job: Job, kind: claim.Kind, accounts: Sequence[BudgetAccount] | None, has_metrics: bool
) -> str:
    caveats = "".join(f"<li>{escape(each)}</li>" for each in claim.caveats(kind, has_metrics))
    alarm = claim.alarm(accounts)
    plot = _epsilon_plot(job) if kind == "dp" else ""
    return (
        "<section><h2>Privacy</h2>"
        + (f"<p class=alarm>{escape(alarm)}</p>" if alarm and kind == "dp" else "")
        + f'<p class="{"alarm" if kind == "none" else ""}">{escape(claim.paragraph(kind))}</p>'
        + (f"<p>Not protected:</p><ul>{caveats}</ul>" if caveats else "")
        + (tables.hospitals(job) if job.nodes and kind != "no_data" else "")
        + (
            f"<h3>Accounts</h3><p class=small>{claim.FIGURES}</p>" + tables.accounts(accounts)
            if accounts
            else ""
        )
        + plot
        + "</section>"
    )


def _epsilon_plot(job: Job) -> str:
    numbers = [each.number for each in job.rounds]
    series = [(node.name, _running(job.rounds, node.name)) for node in job.nodes]
    if not any(value is not None for _, row in series for value in row):
        return ""
    limits = {node.epsilon_limit for node in job.nodes if node.epsilon_limit}
    if len(limits) == 1:
        limit = limits.pop()
        word = "target" if job.target_epsilon else "limit"
        series.append((f"{word} {limit:g}", [limit] * len(numbers)))
        dashed = frozenset({len(series) - 1})
    else:
        dashed = frozenset()
    return _figure(
        "Running epsilon of this job, by round and hospital",
        charts.lines(numbers, series, unit="epsilon", dashed=dashed),
        "layered",
    )


def _running(rounds: Sequence[Round], name: str) -> list[float | None]:
    """A hospital that sits a round out keeps what it had spent."""
    kept: float | None = None
    row: list[float | None] = []
    for each in rounds:
        for part in each.participation:
            if part.node == name and part.HasField("epsilon_after"):
                kept = part.epsilon_after
        row.append(kept)
    return row


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    if not metrics:
        return ""
    each = {"all, pooled": metrics, **(metrics.get("per_node") or {})}
    series = [
        (title, [_number(values.get(key)) for values in each.values()])
        for key, title in (("accuracy", "accuracy"), ("auc", "AUC"))
    ]
    plot = charts.bars([str(name) for name in each], series, unit="", x_title="", top=1.0)
    return (
        "<section><h2>Test figures</h2><p class=small>Of the final model, once, at the end; they"
        f" neither stopped nor chose anything.</p>{tables.test_metrics(metrics)}"
        f"{_figure('Accuracy and AUC on held-out rows', plot)}</section>"
    )


def _evaluation(found: Evaluation | None) -> str:
    if found is None:
        return ""
    return (
        f"<section><h2>Figures at the hospitals</h2><p class=small>Of model"
        f" {escape(found.evaluates)} on the records of {found.hospitals} hospitals with"
        f" {found.declared_n} declared patients. The figures are released with noise and booked;"
        f" the standard error is that of the noise.</p>{tables.evaluation(found)}</section>"
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _rounds(job: Job) -> str:
    if not job.rounds:
        return "<section><h2>Rounds</h2><p>No round has begun.</p></section>"
    figures = [_drift_plot(job), _time_plot(job), _bytes_plot(job)]
    return (
        f"<section><h2>Rounds</h2><h3>Who took part</h3>{tables.participation(job)}"
        f'<div class="figures">{"".join(figures)}</div></section>'
    )


def _drift_plot(job: Job) -> str:
    drift = [each.drift if each.HasField("drift") else None for each in job.rounds]
    floor = [each.drift_noise if each.HasField("drift_noise") else None for each in job.rounds]
    if all(value is None for value in drift):
        return ""
    series: list[tuple[str, Sequence[float | None]]] = [("movement of the model", drift)]
    if any(value is not None for value in floor):
        series.append(("what chance alone would make", floor))
    if job.convergence_threshold:
        threshold = job.convergence_threshold
        series.append((f"threshold {threshold:g}", [threshold] * len(drift)))
    return _figure(
        "Movement of the global model and what chance makes of it",
        charts.lines(
            [each.number for each in job.rounds],
            series,
            unit="relative",
            dashed=frozenset(range(1, len(series))),
        ),
    )


def _time_plot(job: Job) -> str:
    series = [(name, [getattr(each, f"{name}_s") for each in job.rounds]) for name in _PHASES]
    return _figure(
        "Time in each phase",
        charts.stacked([each.number for each in job.rounds], series, unit="seconds"),
    )


def _bytes_plot(job: Job) -> str:
    most = max(max(each.model_bytes, each.update_bytes) for each in job.rounds)
    size, unit = next((pair for pair in _UNITS if most >= pair[0]), _UNITS[-1])
    series = [
        ("model, to each hospital", [each.model_bytes / size for each in job.rounds]),
        ("all updates received", [each.update_bytes / size for each in job.rounds]),
    ]
    return _figure(
        "Bytes by round", charts.bars([each.number for each in job.rounds], series, unit=unit)
    )


def _figure(title: str, content: str, look: str = "") -> str:
    opening = f'<figure class="{look}">' if look else "<figure>"
    return f"{opening}<figcaption>{escape(title)}</figcaption>{content}</figure>"


def _details(job: Job, spec: bytes) -> str:
    facts = [
        ("Job", job.job_id),
        ("Project", job.project),
        ("Submitted by", job.submitted_by),
        ("Created", _when(job.created_at)),
        ("Ended", _when(job.ended_at)),
        ("Model", job.model_digest or "none yet"),
        ("Job file", job.spec_digest),
    ]
    rows = [[name, f"<code>{escape(value)}</code>"] for name, value in facts if value]
    text = escape(spec.decode("utf-8", errors="replace"))
    return (
        f"<section><h2>Details</h2>{tables.table(['What', 'Value'], rows)}"
        "<p class=small>Models and job files are named by their BLAKE3 digest.</p>"
        f"<details open><summary>The job file</summary><pre>{text}</pre></details></section>"
    )


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else ""
