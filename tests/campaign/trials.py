"""What a campaign does to runs, each time with numbers from a generator. A trial raises Broken, or returns what it did."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.campaign.processes import HANGS, Kill
from tests.campaign.runs import Broken, End, Run, check_checkpoint, check_sentence

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
ALL_END = 40.0  # seconds: the grace of 25, and what a process takes to leave


@dataclass(frozen=True)
class Known:
    """A run with its undisturbed end and the seconds that it takes."""

    run: Run
    end: End
    seconds: float


def kill_anywhere(known: Known, folder: Path, random: Random) -> str:
    """SIGKILL at one to three random moments of the run, each in what is left of it."""
    training, kills = known.run.start(folder), random.randint(1, 3)
    for _ in range(kills):
        time.sleep(random.uniform(0, known.seconds))
        training.signal(KILL)
        training.end()
        check_checkpoint(folder)
        training = known.run.resume(folder)
    if any(statuses := training.end(HANGS + 10 * known.seconds)):
        raise Broken(f"the resumed run ended with {statuses}")
    known.end.compare(known.run.end_of(folder))
    return f"{kills} kills"


def kill_within(point: str, known: Known, folder: Path, random: Random) -> str:
    """SIGKILL while a checkpoint, an export or an evaluation is being made."""
    kill = Kill(point, random.randint(1, 3), random.uniform(0, 0.1))
    known.run.start(folder, kill=kill).end(HANGS + 10 * known.seconds)
    check_checkpoint(folder)
    known.run.finish(folder, known.end)
    return f"{kill.delay * 1000:.0f} ms into number {kill.number}"


def told(numbers: tuple[int, ...], known: Known, folder: Path, random: Random) -> str:
    """A signal, or two, at a random moment."""
    training = known.run.start(folder)
    time.sleep(random.uniform(0, known.seconds))
    for number in numbers:
        training.signal(number)
        time.sleep(random.uniform(0.05, 0.5))
    (status,) = training.end()
    if status not in (0, 128 + numbers[0]):  # it may have been through before
        raise Broken(f"{signal.Signals(numbers[0]).name} ended it with {status}")
    known.run.finish(folder, known.end)
    return f"status {status}"


def full_disk(known: Known, folder: Path, random: Random) -> str:
    """A disk that is full at a random size: one sentence, and the run goes on when there is room."""
    size = random.randint(100, 2000) * 1000
    with small_disk(folder, size) as is_real:
        orders = {} if is_real else {"most_bytes": size}
        training = known.run.start(folder, **orders)
        statuses = training.end(HANGS + 10 * known.seconds)
        check_checkpoint(folder)
        if statuses not in ([0], [2]):
            raise Broken(f"a full disk ended it with {statuses}")
        if statuses == [2]:
            check_sentence(training.log)
        if is_real:
            subprocess.run(["mount", "-o", "remount,size=1g", folder / "runs"], check=True)
        known.run.finish(folder, known.end)
    return f"{size / 1000:.0f} kB, status {statuses[0]}, {'tmpfs' if is_real else 'RLIMIT_FSIZE'}"


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """The run's folder on a file system of so many bytes, where this user may mount one."""
    (folder / "runs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder / "runs"]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder / "runs"], check=True)


def rank_ends(number: int, known: Known, folder: Path, random: Random) -> str:
    """One rank of two is killed or told to end, at a random moment: both end, without a launcher that would see to it.

    It is one after they have met: a rank alone waits for the other, and the launcher is there for that.
    """
    training, rank = known.run.start(folder), random.randrange(2)
    while not (folder / "runs/run/config.yaml").exists():
        time.sleep(0.05)
    time.sleep(random.uniform(0, known.seconds))
    training.signal(number, rank)
    begun = time.monotonic()
    statuses = training.end(ALL_END)
    if None in statuses:
        raise Broken(
            f"rank {rank} got {signal.Signals(number).name}, and after {ALL_END:.0f} s the statuses are {statuses}"
        )
    if number == TERM and statuses != [0, 0] and 0 in statuses:
        raise Broken(f"one rank counts the run as finished: {statuses}")
    seconds = time.monotonic() - begun
    check_checkpoint(folder)
    known.run.finish(folder, known.end)
    return f"rank {rank}, both ended in {seconds:.1f} s with {statuses}"
