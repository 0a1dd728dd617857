"""A reward that keeps a record of what it scores and can be stopped on the way, and servers around it."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.serving.http_server import RewardServer
from rtdmd_lightning.rewards.serving.scoring_queue import ScoringQueue, score_forever
from rtdmd_lightning.utils.errors import UserError

REPOSITORY = Path(__file__).parents[2]


class CountingReward(Reward):
    """Mean grey level plus the metadata's number.

    Every image adds its prompt to `folder/scored`, a line after its batch is through. While there is a file `folder/hold`, the
    prompt "stop here" makes a file `folder/stopped` and waits. Some prompts make trouble.
    """

    name, differentiable = "counting", False

    def __init__(self, folder: str, seconds: float = 0.0) -> None:
        self.folder, self.seconds = Path(folder), seconds
        self.batches: list[list[str]] = []
        self.seen: list[Tensor] = []

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        assert images.dtype == torch.float32 and len(images) == len(prompts) == len(metadata)
        if "stop here" in prompts and (self.folder / "hold").exists():
            (self.folder / "stopped").touch()
            wait_until(lambda: not (self.folder / "hold").exists())
        time.sleep(self.seconds)
        if "broken" in prompts:
            raise KeyError("broken")
        if "refused" in prompts:
            raise UserError("counting: take another prompt")
        self.batches.append(prompts)
        self.seen += list(images)
        with (self.folder / "scored").open("a", encoding="utf-8") as record:
            record.write("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        numbers = torch.tensor([float(entry["n"]) for entry in metadata], dtype=torch.float64)
        return images.mean(dim=(1, 2, 3), dtype=torch.float64) + numbers

    def scored(self) -> list[str]:
        return [json.loads(line) for line in (self.folder / "scored").read_text(encoding="utf-8").splitlines()]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Fails where the process ends first; minutes are for one that imports torch on a machine with other work."""
    limit = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < limit, "this never happened"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


@contextlib.contextmanager
def served(
    reward: Reward,
    *,
    batch_size: int = 4,
    max_waiting: int = 100,
    max_pixels: int = 2**24,
    token: str | None = None,
    max_bytes: int = 2**20,
) -> Iterator[str]:
    """A server in this process; its address."""
    queue = ScoringQueue(batch_size, max_waiting, max_pixels)
    with RewardServer(("127.0.0.1", 0), reward, queue, token, max_bytes) as server:
        server.ready = True
        threading.Thread(target=score_forever, args=(reward, queue, torch.device("cpu")), daemon=True).start()
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def serve_process(*options: str) -> Iterator[subprocess.Popen]:
    """The command itself, in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rtdmd_lightning.serve", *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
