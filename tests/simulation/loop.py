"""An event loop on simulated time: the same seed runs the same callbacks in the same order.

Every callback belongs to a process, by its context. Within one process callbacks run in the order
in which they became ready, as asyncio promises; which process is next is drawn by the seed. A
process that does not run keeps what becomes ready until it does, or for ever: that is SIGSTOP, and
that is kill -9. There are no threads, no sockets and no real clock.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from asyncio import base_events, events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")
_TASKS_PRUNED_AT = 256


class Process:
    """What runs, is paused and dies as one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[events.Handle] = deque()
        self.runs = True
        self.context: Context = copy_context()
        self.context.run(_process.set, self)
        self._tasks: list[asyncio.Task[Any]] = []
        self._pruned_at = _TASKS_PRUNED_AT

    def owns(self, task: asyncio.Task[Any]) -> None:
        """Keep it: a task that waits for nothing would otherwise be collected at any moment."""
        self._tasks.append(task)
        if len(self._tasks) > self._pruned_at:
            self._tasks = self.pending()
            self._pruned_at = max(_TASKS_PRUNED_AT, 2 * len(self._tasks))

    def pending(self) -> list[asyncio.Task[Any]]:
        """Its tasks that have not ended."""
        return [task for task in self._tasks if not task.done()]


_process: ContextVar[Process] = ContextVar("process")


def current_process() -> Process:
    """Whose code this is."""
    return _process.get()


class SimulatedLoop(base_events.BaseEventLoop):
    """Runs processes; time stands still while any of them has something to do."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._moment = 0.0
        self.world = Process("world")
        self.processes = [self.world]
        self.failures: list[str] = []
        self.steps = 0
        self._dropped: list[Any] = []
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # its protocol is private
        self.set_exception_handler(self._failed)

    def _failed(self, _loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        # What is only noticed by the garbage collector comes at no certain time.
        if "handle" in told:
            self.failures.append(f"{told['message']}: {told.get('exception')!r}")

    def time(self) -> float:
        return self._moment

    def start(self, process: Process, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` as a task of this process."""
        return process.context.run(self.create_task, work)

    def _call_soon(
        self, callback: Callable[..., Any], args: Any, context: Context | None
    ) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        self._owner(handle).ready.append(handle)
        return handle

    def _owner(self, handle: events.Handle) -> Process:
        return handle._context.get(_process) or self.world  # type: ignore[attr-defined]  # CPython

    def _run_once(self) -> None:
        ready = [one for one in self.processes if one.ready and one.runs]
        while not ready:
            self._pass_time()
            ready = [one for one in self.processes if one.ready and one.runs]
        process = ready[0] if len(ready) == 1 else self._chance.choice(ready)
        handle = process.ready.popleft()
        self.steps += 1
        if not handle.cancelled():
            handle._run()

    def _pass_time(self) -> None:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():
            heapq.heappop(timers)
        assert timers, "nobody will ever do anything any more"
        self._moment = max(self._moment, timers[0].when())
        while timers and timers[0].when() <= self._moment:
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]  # as asyncio's own loop does
            if not timer.cancelled():
                self._owner(timer).ready.append(timer)

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Keep it, instead of closing it at whatever moment the collector came by."""
        self._dropped.append(agen)

    def run_in_executor(  # type: ignore[override]  # of futures, only ours is ever awaited
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """At once: a thread would not be deterministic."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  it belongs to whoever awaits it
            future.set_exception(error)
        return future


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], **options: Any
) -> asyncio.Task[T]:
    task = asyncio.Task(work, loop=loop, **options)
    context = options.get("context")
    process = (context or copy_context()).get(_process)
    if process is not None:
        process.owns(task)
    return task
