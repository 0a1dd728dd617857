"""A campaign of kills, signals, full disks, dead ranks and server faults: `make campaign`, or

    python -m tests.campaign.campaign --minutes 20 --seed 0

Trials of all kinds take turns until the minutes are over, each kind at least once. A run that was disturbed must end as the
undisturbed one, to the last bit. What did not hold is told with the folder that it left; the status is 1 then.
"""

import argparse
import re
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle
from pathlib import Path
from random import Random

from tests.campaign import server, trials
from tests.campaign.runs import Run, prepare
from tests.campaign.table import markdown
from tests.campaign.trials import INT, KILL, TERM, Known

Trial = Callable[[Path, Random], str]


@dataclass
class Kind:
    """Trials of a kind, and what became of them."""

    name: str
    trial: Trial
    tried: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def run(self, folder: Path, seed: str) -> None:
        folder.mkdir(parents=True)
        begun = time.monotonic()
        try:
            said = self.trial(folder, Random(seed))
        except Exception as error:
            self.failures.append(f"{self.name}: {error} ({folder})")
            said = f"DID NOT HOLD: {error}\n{traceback.format_exc()}"
        self.tried += 1
        self.seconds += time.monotonic() - begun
        print(f"{self.name}: {said} ({folder})", flush=True)


def kinds(runs: dict[str, Known]) -> list[Kind]:
    found = []
    for stage in ("stage 1", "stage 2"):
        known = runs[stage]
        found.append(Kind(f"{stage}: killed at random moments", partial(trials.kill_anywhere, known)))
        found += [
            Kind(f"{stage}: killed within {point}", partial(trials.kill_within, point, known))
            for point in ("checkpoint", "export", "evaluation")
        ]
        found += [
            Kind(f"{stage}: {name}", partial(trials.told, numbers, known))
            for name, numbers in {"SIGTERM": (TERM,), "Ctrl-C": (INT,), "two Ctrl-C": (INT, INT)}.items()
        ]
        found.append(Kind(f"{stage}: disk full", partial(trials.full_disk, known)))
    for strategy in ("ddp", "fsdp2"):
        for name, number in (("killed", KILL), ("SIGTERM", TERM)):
            found.append(Kind(f"{strategy}: one rank of two {name}", partial(trials.rank_ends, number, runs[strategy])))
    found.append(Kind("reward server: killed under a client", server.killed))
    found.append(Kind("reward server: requests that make no sense", server.nonsense))
    return found


def known_runs(folder: Path) -> Iterator[tuple[str, Known]]:
    pipeline, cold_start = prepare(folder)
    for name in ("stage 1", "stage 2", "ddp", "fsdp2"):
        stage, strategy = ("stage 1", name) if name in ("ddp", "fsdp2") else (name, None)
        run = Run(stage, strategy, pipeline, cold_start)
        (folder / f"undisturbed {name}").mkdir()
        end, seconds = run.undisturbed(folder / f"undisturbed {name}")
        print(f"undisturbed, {name}: {seconds:.1f} s", flush=True)
        yield name, Known(run, end, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="no trial is begun after them")
    parser.add_argument("--seed", type=int, default=0, help="of all moments and numbers")
    parser.add_argument("--workers", type=int, default=2, help="trials at a time")
    parser.add_argument("--only", default="", help="kinds with this in their names, a regular expression")
    options = parser.parse_args()
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="campaign_"))
    chosen = [kind for kind in kinds(dict(known_runs(folder))) if re.search(options.only, kind.name)]

    def is_over() -> bool:
        return time.monotonic() - begun > 60 * options.minutes

    def work(numbers: Iterator[tuple[int, Kind]]) -> None:
        for number, kind in numbers:
            if is_over() and number >= len(chosen):
                return
            kind.run(folder / f"{number:03d}", f"{options.seed} {number}")

    numbered = _Shared(zip(count(), cycle(chosen), strict=False))
    with ThreadPoolExecutor(options.workers) as pool:
        for future in [pool.submit(work, numbered) for _ in range(options.workers)]:
            future.result()
    rows = [[kind.name, kind.tried, kind.tried - len(kind.failures)] for kind in chosen]
    rows.append(["all", sum(row[1] for row in rows), sum(row[2] for row in rows)])
    minutes = (time.monotonic() - begun) / 60
    print(f"\n{time.strftime('%Y-%m-%d')}, seed {options.seed}, {minutes:.0f} minutes\n")
    print(markdown(["what was done", "trials", "held"], rows))
    failures = [failure for kind in chosen for failure in kind.failures]
    print("\n".join(["", *failures]))
    raise SystemExit(min(1, len(failures)))


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, iterator: Iterator) -> None:
        self._iterator, self._lock = iterator, threading.Lock()

    def __iter__(self):
        return self

    def __next__(self):
        with self._lock:
            return next(self._iterator)


if __name__ == "__main__":
    main()
