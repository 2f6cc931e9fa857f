"""When the hospital is told that rows are left out, and when that is over."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.session.training import Training
from node_agent.state.notes import ROWS_LEFT_OUT_NOTE
from tests.node_agent.samples import NO_DATA, order

SAID = "column 'age' is not a number in 1 row, first in row 7"


def trained(remark: str = "") -> dict[str, Any]:
    """What a worker answers."""
    return {"op": "trained", "digest": "d", "bytes": 1, "remark": remark}


@pytest.mark.parametrize(
    ("answer", "changes", "kept", "warnings"),
    [
        (trained(), {}, "", 1),
        (trained("others"), {}, "others", 2),
        (trained(SAID), {}, SAID, 1),
        (trained(), NO_DATA, SAID, 1),
        ({"op": "no_update", "class": "DATA_PROBLEM", "detail": "-"}, {}, SAID, 1),
    ],
    ids=["all read", "others left out", "the same left out", "no records read", "no update"],
)
def test_it_is_over_only_with_an_attempt_that_has_read_the_records(
    tmp_path: Path, answer: dict[str, Any], changes: dict[str, Any], kept: str, warnings: int
) -> None:
    """A job that reads none, or one that failed, does not know. The log warns once of each."""
    notes: dict[str, str] = {}

    async def run(call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    spool = SimpleNamespace(model=lambda _: tmp_path, out=lambda _: tmp_path)
    training = Training(
        failures=None,  # type: ignore[arg-type]
        state=SimpleNamespace(notes=SimpleNamespace(keep=notes.__setitem__)),  # type: ignore[arg-type]
        ledger=SimpleNamespace(run=run),  # type: ignore[arg-type]
        admission=None,  # type: ignore[arg-type]
        spool=spool,  # type: ignore[arg-type]
        start_worker=None,  # type: ignore[arg-type]
        logs=tmp_path,
        limits=None,  # type: ignore[arg-type]
        dispatch=lambda _: None,
        wanted=lambda _: True,
        clock=lambda: 0.0,
        traces=SimpleNamespace(worked=lambda *_: None),  # type: ignore[arg-type]
    )

    async def attempts() -> None:
        for said, changed in ((trained(SAID), {}), (answer, changes)):

            async def request(_: Any, said: dict[str, Any] = said) -> dict[str, Any]:
                return said

            await training._train(SimpleNamespace(request=request), order(**changed), 0.0, 0.0)  # type: ignore[arg-type]

    with capture_logs() as logs:
        asyncio.run(attempts())
    assert notes == {f"{ROWS_LEFT_OUT_NOTE}heart": kept}
    assert [one["event"] for one in logs].count("rows_left_out") == warnings
