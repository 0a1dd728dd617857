"""How long one prompt's embedding takes to read: `python -m tests.support.read_embeddings FOLDER [PROMPTS]`.

A file a prompt, as `EmbeddingStore` has them, against safetensors files of 256 prompts, in random order; cold (the pages are
dropped from the system's cache first) and warm. SD3.5's sizes in bfloat16. The folder is filled, and left.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rtdmd_lightning.data.embedding_store import EmbeddingStore
from rtdmd_lightning.sampling.structures import Conditioning

SHARD = 256


def row() -> Conditioning:
    return Conditioning(torch.randn(1, 205, 4096).bfloat16(), torch.randn(1, 2048).bfloat16())


def main(folder: Path, count: int) -> None:
    store, shards = EmbeddingStore(folder, {}), {}
    for start in range(0, count, SHARD):
        rows = [row() for _ in range(start, min(start + SHARD, count))]
        for number, one in enumerate(rows, start):
            store.write(str(number), one)
        save_file(Conditioning.cat(rows).tensors(), folder / f"{start}.safetensors")
    os.sync()

    def from_shard(number: int) -> Conditioning:
        start = number // SHARD * SHARD
        if start not in shards:
            shards[start] = safe_open(folder / f"{start}.safetensors", framework="pt")
        at = number - start
        return Conditioning(
            **{name: shards[start].get_slice(name)[at : at + 1].clone() for name in ("embeds", "pooled")}
        )

    readers: dict[str, Callable[[int], Conditioning]] = {
        "a file a prompt": lambda n: store.read(str(n)),
        "shards": from_shard,
    }
    for name, read in readers.items():
        for state in ("cold", "warm"):
            if state == "cold":
                shards.clear()
                for file in folder.rglob("*.safetensors"):
                    with file.open("rb") as opened:
                        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            numbers = random.Random(state).sample(range(count), count)
            start = time.perf_counter()
            for number in numbers:
                read(number)
            print(f"{name}, {state}: {1000 * (time.perf_counter() - start) / count:.2f} ms a prompt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 512)
