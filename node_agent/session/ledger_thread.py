"""The one thread that uses `state.db`, so that no disk wait ever delays a heartbeat."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")
_Given = tuple[Callable[[], Any], "asyncio.Future[Any]"]

SOON_S: Final = 0.1
"""How long `soon` waits for something to go with: waking a thread costs more than a small write."""


class LedgerThread:
    """Runs functions one after the other, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._waiting: list[_Given] = []

    async def run(
        self,
        function: Callable[_Arguments, _Answer],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Answer:
        """Call `function` there and wait for its answer.

        It is called and ends also if the caller is cancelled.
        """
        done = self._ask(partial(function, *args, **kwargs))
        self._begin()
        answer: _Answer = await done
        return answer

    async def soon(
        self,
        function: Callable[_Arguments, _Answer],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Answer:
        """As `run`, when something else is to be done there or after `SOON_S`."""
        done = self._ask(partial(function, *args, **kwargs))
        asyncio.get_running_loop().call_later(SOON_S, self._begin)
        answer: _Answer = await done
        return answer

    def close(self) -> None:
        """Finish what was asked for."""
        self._begin()
        self._pool.shutdown(wait=True)

    def _ask(self, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        return done

    def _begin(self) -> None:
        if self._waiting:
            given, self._waiting = self._waiting, []
            self._pool.submit(_do, given)


def _do(given: list[_Given]) -> None:
    ended: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
    for work, done in given:
        try:
            ended.append((done, work(), None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            ended.append((done, None, error))
    with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
        ended[0][0].get_loop().call_soon_threadsafe(_tell, ended)


def _tell(ended: list[tuple["asyncio.Future[Any]", Any, BaseException | None]]) -> None:
    for done, answer, error in ended:
        if done.done():
            continue
        if error is None:
            done.set_result(answer)
        else:
            done.set_exception(error)
