"""Processes that end when this one is told to end: SIGTERM comes to a command alone, not to what it has started."""

import signal
import subprocess
import sys
from types import FrameType
from typing import Any


class Children:
    """While it is entered, in the main thread, SIGTERM to this process is passed on to all that `run` has started.

    Those that are started after it get it too. At the end SystemExit tells it: status 128 + 15. Ctrl-C is not passed on, a
    terminal sends it to all.
    """

    def __init__(self) -> None:
        self._running: list[subprocess.Popen] = []
        self.ended = False

    def __enter__(self) -> "Children":
        self._before = signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self.ended:
            said = "SIGTERM: what was under way has been ended too; the same command goes on with it"
            print(said, file=sys.stderr, flush=True)
            raise SystemExit(128 + signal.SIGTERM)

    def run(self, command: list[str], **options: Any) -> int:
        """Start a process, wait for it and return its status; any thread may. The options are Popen's."""
        with subprocess.Popen(command, **options) as process:
            self._running.append(process)
            if self.ended:
                process.terminate()
            status = process.wait()
        self._running.remove(process)
        return status

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.ended = True
        for process in [*self._running]:
            process.terminate()
