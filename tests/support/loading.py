"""What the processes of a run read, hold and start from."""

import json
import os
import re
import threading
from hashlib import sha256
from pathlib import Path

import torch
from lightning import Callback

from rtdmd_lightning.models import SD3Backbone
from rtdmd_lightning.roles.lora import full_tensor

MEBIBYTE = 2**20


class OneReads(SD3Backbone):
    """Only the first process has weights: each of the others a folder of its own, `PRETRAINED-1` and so on."""

    def __init__(self, pretrained: str, resolution: int, **options) -> None:
        rank = os.environ.get("LOCAL_RANK", "0")
        super().__init__(pretrained if rank == "0" else f"{pretrained}-{rank}", resolution, **options)


class WatchLoading(Callback):
    """Writes, by rank, the digests of the bases' weights on the device and how far private memory rose while they came.

    Private memory is what no file backs: pages that are mapped from a file of weights belong to all processes of a machine.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def setup(self, trainer, pl_module, stage) -> None:  # before configure_model
        self.before, self.most, self.done = private_memory(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.done.wait(0.002):
            self.most = max(self.most, private_memory())

    def on_fit_start(self, trainer, pl_module) -> None:
        self.done.set()
        self.thread.join()
        state = {path: full_tensor(value) for path, value in pl_module.roles.transformer.named_parameters()}
        state |= dict(pl_module.roles.transformer.named_buffers())
        digests = {
            path.replace(".base_layer", ""): digest(value) for path, value in state.items() if "lora_" not in path
        }
        found = {"memory": (self.most - self.before) / MEBIBYTE, "digests": digests}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


def digest(tensor: torch.Tensor) -> str:
    return sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def private_memory() -> int:
    """Bytes of this process that are no file's."""
    (kibibytes,) = re.findall(r"^Anonymous: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return 1024 * int(kibibytes)
