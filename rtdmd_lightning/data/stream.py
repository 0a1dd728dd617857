"""The endless stream of training prompts and its split over processes and optimizer steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import keyed_generator


@dataclass(frozen=True)
class PromptBatch:
    """B prompts with their GenEval-style metadata and their global sample indices, unique over the whole run."""

    prompts: list[str]
    metadata: list[dict]
    indices: list[int]

    def __getitem__(self, part: slice) -> "PromptBatch":
        return PromptBatch(self.prompts[part], self.metadata[part], self.indices[part])

    def split(self, size: int) -> "list[PromptBatch]":
        """In parts of so many rows."""
        return [self[start : start + size] for start in range(0, len(self.prompts), size)]

    def at(self, rows: list[int]) -> "PromptBatch":
        """Some of its rows."""
        return PromptBatch(
            [self.prompts[row] for row in rows],
            [self.metadata[row] for row in rows],
            [self.indices[row] for row in rows],
        )

    @staticmethod
    def cat(parts: Sequence["PromptBatch"]) -> "PromptBatch":
        """The prompts of all parts."""
        return PromptBatch(
            [prompt for part in parts for prompt in part.prompts],
            [metadata for part in parts for metadata in part.metadata],
            [index for part in parts for index in part.indices],
        )


class PromptStream(Dataset):
    """Position p of the stream: passes over all prompts, one after the other, each in its own random order.

    Each prompt fills `repeats` positions in a row: the group that stage 2 compares.
    """

    def __init__(self, prompts: list[dict], seed: int, repeats: int = 1) -> None:
        self.prompts, self.repeats = prompts, repeats
        self._order = lru_cache(maxsize=4)(
            lambda epoch: torch.randperm(len(prompts), generator=keyed_generator(seed, epoch, "prompt order")).tolist()
        )

    def __getitem__(self, position: int) -> tuple[int, dict]:
        epoch, offset = divmod(position // self.repeats, len(self.prompts))
        return position, self.prompts[self._order(epoch)[offset]]


def samples_per_process(batch_size: int, world_size: int) -> int:
    """Raises UserError for a batch that does not divide, or leaves a process without a sample."""
    if batch_size % world_size or batch_size < world_size:
        raise UserError(
            f"model.batch_size {batch_size} does not divide by the number of processes {world_size}: "
            f"{batch_size} / {world_size} = {batch_size / world_size:.2f} samples per process"
        )
    return batch_size // world_size


def samples_per_pass(batch_size: int, world_size: int, micro_batch_size: int | None) -> int:
    """What a process takes at once of its part of a batch. Raises UserError where that does not divide."""
    local = samples_per_process(batch_size, world_size)
    if micro_batch_size is None:
        return local
    if local % micro_batch_size:
        raise UserError(
            f"model.micro_batch_size {micro_batch_size} does not divide the {local} samples per process (model.batch_size "
            f"{batch_size} / {world_size} processes): give one that does"
        )
    return micro_batch_size


class StepSampler(Sampler[list[int]]):
    """This process's stream positions of every optimizer step, from step `first_step` on, without end.

    A step takes `batches` batches of `batch_size` positions; of each batch, process r of W takes the r-th W-th.
    """

    def __init__(self, *, batch_size: int, batches: int, first_step: int, rank: int, world_size: int) -> None:
        self.local = samples_per_process(batch_size, world_size)
        self.batch_size, self.batches, self.first_step, self.rank = batch_size, batches, first_step, rank

    def __iter__(self) -> Iterator[list[int]]:
        of_step = self.batches * self.batch_size
        start = self.first_step * of_step + self.rank * self.local
        while True:
            firsts = range(start, start + of_step, self.batch_size)
            yield [position for first in firsts for position in range(first, first + self.local)]
            start += of_step


def collate(items: list[tuple[int, dict]]) -> PromptBatch:
    return PromptBatch(
        prompts=[metadata["prompt"] for _, metadata in items],
        metadata=[metadata for _, metadata in items],
        indices=[position for position, _ in items],
    )


class RolloutDataModule(L.LightningDataModule):
    """The prompts that the modules roll out: a training step's batches, the same ones on any number of processes.

    Args:
        prompts: where they are, see `load_prompts`.
        batch_size: samples of one forward pass over all processes (linked from the model).
        batches_per_step: how many such batches one training step consumes (linked from the model).
        images_per_prompt: how many samples in a row share a prompt (linked from the model). A group may span batches and
            processes, but not training steps.
        seed: of the prompt order (linked from `seed_everything`).
    """

    def __init__(
        self, prompts: str, batch_size: int = 1, batches_per_step: int = 1, images_per_prompt: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        if (samples := batch_size * batches_per_step) % images_per_prompt:
            raise UserError(
                f"an epoch must hold whole groups of a prompt's images: {batches_per_step} batches x {batch_size} samples "
                f"= {samples} is no multiple of model.images_per_prompt {images_per_prompt} "
                f"({samples} / {images_per_prompt} = {samples / images_per_prompt:.2f} prompts)"
            )
        self.batch_size, self.batches_per_step, self.seed = batch_size, batches_per_step, seed
        self.stream = PromptStream(load_prompts(prompts), seed, images_per_prompt)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        # The position is a function of the step alone, so a resumed run goes on exactly where it stopped.
        sampler = StepSampler(
            batch_size=self.batch_size,
            batches=self.batches_per_step,
            first_step=self.trainer.global_step,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return DataLoader(self.stream, batch_sampler=sampler, collate_fn=collate)
