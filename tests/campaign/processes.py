"""Training processes that a trial can kill: forked from one that has imported all, so that a run costs its training alone."""

import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for what it imports ahead
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["rtdmd_lightning.fit", "rtdmd_lightning.serve", "tests.support.tiny_rtdmd", "tensorboard"]
)
HANGS = 90.0  # seconds after which a process that was to end counts as one that hangs


@dataclass(frozen=True)
class Kill:
    """SIGKILL, which a process gives itself: `delay` seconds into the `number`-th call of what `point` names."""

    point: str
    number: int
    delay: float


@dataclass(frozen=True)
class Orders:
    """What is done to a process before it trains; it notes in `begun` that nothing is left to do."""

    log: Path
    begun: Path
    kill: Kill | None = None
    most_bytes: int | None = None
    """No file may grow beyond; the system calls fail then as on a full disk."""
    environment: dict[str, str] = field(default_factory=dict)


def train(arguments: list[str], orders: Orders) -> None:
    """In the child: what `python -m rtdmd_lightning.fit ARGUMENTS` does."""
    import torch

    from rtdmd_lightning import fit
    from rtdmd_lightning.utils.errors import readable_errors
    from rtdmd_lightning.utils.processes import closing_process_group
    from rtdmd_lightning.utils.stopping import ending_at_once

    output = os.open(orders.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(orders.environment)
    torch.set_num_threads(1)
    if orders.kill is not None:
        _arm(orders.kill)
    if orders.most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (orders.most_bytes, orders.most_bytes))
    with readable_errors(), closing_process_group(), ending_at_once():
        orders.begun.touch()
        fit.main(arguments)
    for one in (signal.SIGTERM, signal.SIGINT):  # the run is over; what comes now is no part of the trial
        signal.signal(one, signal.SIG_IGN)
    sys.stdout.flush()


def _arm(kill: Kill) -> None:
    from rtdmd_lightning.callbacks import ExportGenerator, RewardEvalCallback
    from rtdmd_lightning.utils.checkpointing import AtomicCheckpointIO

    owner, name = {
        "checkpoint": (AtomicCheckpointIO, "save_checkpoint"),
        "export": (ExportGenerator, "write"),
        "evaluation": (RewardEvalCallback, "evaluate"),
    }[kill.point]
    original, calls = getattr(owner, name), []

    def deadly(*arguments, **options):
        calls.append(name)
        if len(calls) == kill.number:
            threading.Timer(kill.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*arguments, **options)

    setattr(owner, name, deadly)


class Training:
    """A run under way, of one process or of several."""

    def __init__(self, arguments: list[str], folder: Path, ranks: int = 1, **orders) -> None:
        self.log = folder / "output.log"
        begun = [folder / f"begun_{time.monotonic_ns()}_{rank}" for rank in range(ranks)]
        port = free_port()
        self.processes = []
        for rank in range(ranks):
            environment = _as_torchrun_has_it(rank, ranks, port) if ranks > 1 else {}
            order = Orders(self.log, begun[rank], environment=environment, **orders)
            process = FORKS.Process(target=train, args=(arguments, order), daemon=True)
            process.start()
            self.processes.append(process)
        while not all(path.exists() for path in begun) and all(process.exitcode is None for process in self.processes):
            time.sleep(0.01)

    def signal(self, number: int, rank: int = 0) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, number)

    def end(self, seconds: float = HANGS) -> list[int | None]:
        """Status of every rank, minus the signal that killed it; None for one that has not ended in time, which is killed."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
                process.join()
        return statuses


def _as_torchrun_has_it(rank: int, ranks: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "campaign"}
    return {name: str(value) for name, value in (numbers | place).items()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
