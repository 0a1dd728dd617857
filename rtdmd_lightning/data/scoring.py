"""Images are scored while something else goes on: in a thread and, on an accelerator, on a stream of their own.

Or, where rewards are offloaded, later: one reward after the other.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from rtdmd_lightning.data.stream import PromptBatch

Scores = dict[str, Tensor]


class Scorer:
    """Scores batches of images one after the other. One for a run: memory that a stream has used stays with that stream.

    Args:
        score: images `[B, 3, H, W]` with their batch to scores `[B]` by name; see `RewardMixture.score`.
        device: where the images are.
    """

    def __init__(self, score: Callable[[Tensor, PromptBatch], Scores], device: torch.device) -> None:
        self._score, self._device = score, device
        self._stream = None if device.type == "cpu" else torch.Stream(device)

    @contextmanager
    def open(self) -> Iterator["ScoringAtOnce"]:
        """The thread, for as long as the body lasts. When the body raises, what is not being scored yet is given up."""
        with ThreadPoolExecutor(max_workers=1, initializer=self._begin) as thread:
            try:
                yield ScoringAtOnce(self, thread)
            except BaseException:
                thread.shutdown(wait=False, cancel_futures=True)
                raise

    def _begin(self) -> None:
        """In the thread, which inherits nothing: it would work on device 0 and on the default stream.

        Autocast is off in it, so each network computes in the dtype of its weights. It is never left: leaving a thread's
        outermost autocast empties the cache of cast weights, which the training thread shares and may be using.
        """
        torch.autocast(self._device.type, enabled=False).__enter__()
        if self._stream is not None:
            torch.accelerator.set_device_index(self._device)
            torch.accelerator.set_stream(self._stream)

    def images_ready(self) -> torch.Event | None:
        """What the caller's stream has queued so far, the images among it."""
        return None if self._stream is None else torch.accelerator.current_stream(self._device).record_event()

    def run(self, images: Tensor, batch: PromptBatch, ready: torch.Event | None) -> Scores:
        """In the thread: the scores, on the CPU. The copy waits for this stream, so nobody has to wait for it afterwards."""
        if self._stream is not None and ready is not None:
            self._stream.wait_event(ready)
            images.record_stream(self._stream)  # their memory goes to nobody else before this stream has done with them
        return {name: values.cpu() for name, values in self._score(images, batch).items()}


class Scoring(Protocol):
    """Batches of images whose scores are asked for later."""

    def add(self, images: Tensor, batch: PromptBatch) -> None:
        """Score these after those that were added before."""

    def raise_failure(self) -> None:
        """Raises what a reward has raised so far; waits for nothing."""

    def results(self) -> tuple[list[int], Scores]:
        """The samples' indices, N, and their scores `[N]` by name on the CPU, in the order they were added.

        Waits for them; raises what a reward raises.
        """
        ...


class ScoringAtOnce:
    """The batches that were handed to a `Scorer` since it was opened; each is scored as soon as the ones before it are."""

    def __init__(self, scorer: Scorer, thread: ThreadPoolExecutor) -> None:
        self._scorer, self._thread = scorer, thread
        self._indices: list[int] = []
        self._scores: list[Future[Scores]] = []

    def add(self, images: Tensor, batch: PromptBatch) -> None:
        self._indices += batch.indices
        self._scores.append(self._thread.submit(self._scorer.run, images, batch, self._scorer.images_ready()))

    def raise_failure(self) -> None:
        for scores in filter(Future.done, self._scores):
            scores.result()

    def results(self) -> tuple[list[int], Scores]:
        batches = [scores.result() for scores in self._scores]
        return self._indices, {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


class ScoringLater:
    """The images wait on the CPU until the scores are asked for, and are then scored together.

    Args:
        score_all: batches of images, prompts and metadata to scores `[N]` by name; see `RewardMixture.score_all`.
        device: where the rewards work.
    """

    def __init__(
        self,
        score_all: Callable[[Sequence[tuple[Tensor, list[str], list[dict]]], torch.device], Scores],
        device: torch.device,
    ) -> None:
        self._score_all, self._device = score_all, device
        self._indices: list[int] = []
        self._waiting: list[tuple[Tensor, list[str], list[dict]]] = []

    def add(self, images: Tensor, batch: PromptBatch) -> None:
        self._indices += batch.indices
        self._waiting.append((images.cpu(), batch.prompts, batch.metadata))

    def raise_failure(self) -> None:
        """Nothing is scored yet."""

    def results(self) -> tuple[list[int], Scores]:
        with torch.autocast(self._device.type, enabled=False):
            scores = self._score_all(self._waiting, self._device)
        return self._indices, {name: values.cpu() for name, values in scores.items()}
