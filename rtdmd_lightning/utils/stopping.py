"""Signals that end a run: heard at once, told to every process, obeyed by all of them after the same update.

Python runs a signal's handler in the main thread, which may be waiting for another process just then. A thread of its own
reads the signals here, from the pipe that the interpreter writes them to.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch.distributed import DistError, Store

GRACE = 25.0  # seconds; SLURM and Kubernetes kill 30 seconds after SIGTERM
POLL = 0.5  # seconds between two looks at what other processes have heard
ENDING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """While nothing is trained, SIGTERM or Ctrl-C ends this process at once: nothing is to be saved.

    The status is 128 + the signal's number.
    """
    before = {one: signal.signal(one, _exit_at_once) for one in ENDING}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    print(f"{name}: the run ends at once; --ckpt_path=last goes on with it, or begins it", file=sys.stderr, flush=True)
    os._exit(128 + number)  # what exceptions pass through on their way, Lightning for one, has other ideas of a status


class StopSignals:
    """Listens from `listen` to `close`; make and call it in the main thread.

    A process that hears SIGTERM or SIGINT, or learns that another one has, exits with status 128 + the signal's number when its
    update has not ended after the grace: a rank that waits for one that is gone does not wait for ever. A second SIGINT ends it
    at once.

    Args:
        others: other signals that are obeyed between two updates, without a grace.
        store: what the processes share; None for one process alone. They must step together: no step ends on any process
            before it has begun on all.
        grace: seconds.
        tell: called with a sentence when a signal is heard.
    """

    def __init__(
        self,
        others: Sequence[signal.Signals] = (),
        store: Store | None = None,
        grace: float = GRACE,
        tell: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr, flush=True),
    ) -> None:
        self.signals = [*ENDING, *others]
        self._store, self._grace, self._tell = store, grace, tell
        self._heard: set[signal.Signals] = set()
        self._obeyed: set[signal.Signals] = set()
        self._deadline: tuple[float, signal.Signals] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)

    def listen(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handlers_before: dict[signal.Signals, Any] = {one: signal.getsignal(one) for one in self.signals}
        self._writing_before = signal.set_wakeup_fd(self._writing)
        for one in self.signals:
            signal.signal(one, lambda number, frame: None)  # without a handler the interpreter writes nothing
        self._thread.start()

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        for one, handler in self._handlers_before.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._writing_before)
        os.write(self._writing, b"\0")  # no signal's number: it only wakes the thread
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def due(self, step: int) -> list[signal.Signals]:
        """The signals to be obeyed now that a step has ended; the same on every process, each signal once.

        With several processes a signal is obeyed a step later than heard: whoever heard it announces that before it begins the
        next step, which no process ends before.
        """
        found = [one for one in self.signals if one not in self._obeyed and self._is_due(one, step)]
        self._obeyed.update(found)
        return found

    def _is_due(self, one: signal.Signals, step: int) -> bool:
        if self._store is None:
            return one in self._heard
        key = f"obey {one.name} after"
        if one in self._heard:
            self._store.compare_set(key, "", str(step + 1))  # the first to say it decides
        return self._store.check([key]) and step >= int(self._store.get(key))

    def _watch(self) -> None:
        while not self._closed.is_set():
            ready, _, _ = select.select([self._reading], [], [], POLL)
            for number in os.read(self._reading, 64) if ready else b"":
                if number in self.signals:
                    self._hear(signal.Signals(number), here=True)
            self._ask_others()
            if self._deadline is not None and time.monotonic() > self._deadline[0]:
                one = self._deadline[1]
                self._tell(f"{one.name}: the running update has not ended in {self._grace:g} seconds and is abandoned")
                os._exit(128 + one)

    def _ask_others(self) -> None:
        if self._store is None or self._deadline is not None:
            return
        try:
            for one in ENDING:
                if self._store.check([one.name]):
                    self._hear(one, here=False)
        except DistError:  # the process that keeps the store is gone, or has finished before this one
            self._deadline = time.monotonic() + self._grace, signal.SIGTERM

    def _hear(self, one: signal.Signals, *, here: bool) -> None:
        if one in self._heard:
            if one is signal.SIGINT and here:
                os._exit(128 + one)
            return
        self._heard.add(one)
        if one not in ENDING:
            return
        self._deadline = self._deadline or (time.monotonic() + self._grace, one)
        if self._store is not None:
            self._store.set(one.name, "")
        self._tell(f"{one.name}: the run ends after the running update, or in {self._grace:g} seconds")
