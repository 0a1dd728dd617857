"""Two processes under torchrun that stay, and run one training after the other.

Most of a tiny two-process run is three imports of torch, diffusers and Lightning: the launcher's and each worker's. A session
starts one pair, at the first test that wants it, and all two-process tests send it their command lines. The process group
is made by the first run and kept, as Lightning does where it finds one.
"""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TextIO

REPOSITORY = Path(__file__).parents[2]
PROCESSES = 2
TIMEOUT = 600  # seconds, for one run or for the imports


class Pair:
    """Both processes. They import what they need while the test's own process goes on.

    Args:
        log: the file that all their output goes to.
    """

    def __init__(self, log: Path) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(1)
        self._streams: list[TextIO] = []
        self._log = log
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={PROCESSES}",
            "-m",
            "tests.support.pair",
        ]
        port = str(self._server.getsockname()[1])
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PAIR_PORT": port}
        with log.open("w") as output:
            self._launcher = subprocess.Popen(
                [sys.executable, *launcher], env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
            )

    def fit(self, *arguments: str) -> None:
        """`rtdmd_lightning.fit ARGUMENTS` on two devices. Fails with their tracebacks unless both processes finish."""
        failures = [failure for failure in self._run(arguments) if failure is not None]
        assert not failures, "\n".join(failures)

    def refusals(self, *arguments: str) -> list[str]:
        """Each process's traceback of a run that both must refuse."""
        failures = self._run(arguments)
        assert None not in failures, "a process did not refuse"
        return [str(failure) for failure in failures]

    def close(self) -> None:
        self._launcher.terminate()
        self._launcher.wait()
        for stream in self._streams:
            stream.close()
        self._server.close()

    def _run(self, arguments: tuple[str, ...]) -> list[str | None]:
        try:
            while len(self._streams) < PROCESSES:
                self._streams.append(self._accept())
            for stream in self._streams:
                stream.write(json.dumps([*arguments, f"--trainer.devices={PROCESSES}"]) + "\n")
                stream.flush()
            return [json.loads(stream.readline()) for stream in self._streams]
        except (TimeoutError, json.JSONDecodeError) as error:
            self.close()  # the tests after this one fail at once
            raise AssertionError(f"a process hangs or died: {self._log.read_text()[-5000:]}") from error

    def _accept(self) -> TextIO:
        """The next process that has come up. Raises TimeoutError if none does, at once where they have ended."""
        until = time.monotonic() + TIMEOUT
        while True:
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                if time.monotonic() > until or self._launcher.poll() is not None:
                    raise
                continue
            connection.settimeout(TIMEOUT)
            return connection.makefile("rw")


def serve() -> None:
    """A worker: a JSON list of arguments a line in, null or a traceback a line out, until the other side hangs up."""
    from rtdmd_lightning import fit

    connection = socket.create_connection(("127.0.0.1", int(os.environ["PAIR_PORT"])))
    with connection, connection.makefile("rw") as stream:
        for line in stream:
            failure = None
            try:
                fit.main(json.loads(line))
            except Exception:
                failure = traceback.format_exc()
            stream.write(json.dumps(failure) + "\n")
            stream.flush()


if __name__ == "__main__":
    serve()
