"""A process in virtual time: it has a clock of its own and a disk, and loses its memory."""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.world import World

Resume = Callable[[Any], None]
Wait = Callable[[Resume], None]
Work = Generator[Wait, Any, None]


class Task:
    """A generator that yields what it waits for, as a coroutine awaits."""

    def __init__(self, process: "Process", work: Work) -> None:
        self._process, self._life, self._work = process, process.life, work
        self.cancelled = False

    def go_on(self, value: Any) -> None:
        """Run to the next wait, unless the task or its process is gone."""
        if self.cancelled or not self._process.alive(self._life):
            return
        try:
            wait = self._work.send(value)
        except StopIteration:
            return
        wait(self.go_on)

    def cancel(self) -> None:
        """Never go on; a disk step that has begun takes effect all the same."""
        if not self._work.gi_running:
            self.cancelled = True
            self._work.close()


class Process:
    """A machine that may stop at any step. `life` tells its incarnations apart."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.up, self.life = False, 0
        self.clock_offset_s = world.random.uniform(-30.0, 30.0)
        self.clock_rate = world.random.uniform(0.98, 1.02)
        self._disk_free_s = 0.0

    def alive(self, life: int) -> bool:
        """Whether the incarnation of that number still runs."""
        return self.up and self.life == life

    def clock(self) -> float:
        """The wall clock as this machine has it."""
        return 1e6 + self.world.now_s * self.clock_rate + self.clock_offset_s

    def start(self) -> None:
        """Begin another life with an empty memory."""
        self.up, self.life = True, self.life + 1
        self._disk_free_s = self.world.now_s
        self.world.note(f"{self.name} starts")

    def crash(self, why: str) -> None:
        """Stop at once; memory is gone, and so is what was only asked for."""
        if not self.up:
            return
        self.up = False
        self.world.note(f"{self.name} crashes: {why}")
        self.forget()
        self.world.restart_later(self)

    def forget(self) -> None:
        """Drop the memory."""
        raise NotImplementedError

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something in this life."""
        life = self.life
        self.world.later(delay_s, lambda: work() if self.alive(life) else None)

    def spawn(self, work: Work) -> Task:
        """Start a task after whatever runs now."""
        task = Task(self, work)
        self.later(0.0, lambda: task.go_on(None))
        return task

    def sleep(self, seconds: float) -> Wait:
        """Wait so long."""
        return lambda resume: self.later(max(0.0, seconds), lambda: resume(None))

    def disk(self, work: Callable[[], Any]) -> Wait:
        """One durable step, in the order asked; a crash may come before or after it."""
        return lambda resume: self.commit(work, resume)

    def commit(self, work: Callable[[], Any], then: Resume) -> None:
        """As `disk`; `then` is called with the result a little later."""

        def step() -> None:
            task = getattr(then, "__self__", None)
            if isinstance(task, Task) and task.cancelled:
                return
            if self.strike("crash_before_commit"):
                self.crash("before a commit")
                return
            result = work()
            if self.strike("crash_after_commit"):
                self.crash("after a commit")
                return
            self.later(0.0005, lambda: then(result))

        self._disk_free_s = max(self._disk_free_s, self.world.now_s) + self.disk_delay_s()
        self.later(self._disk_free_s - self.world.now_s, step)

    def disk_delay_s(self) -> float:
        """How long the next durable step takes."""
        if self.strike("slow_disk"):
            return self.world.random.uniform(0.5, 15.0)
        return self.world.random.uniform(0.001, 0.01)

    def strike(self, kind: str) -> bool:
        """Whether a fault happens to this process now."""
        return self.world.faults.strike(kind, self.world.now_s)
