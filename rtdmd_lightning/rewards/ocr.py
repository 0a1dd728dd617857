"""Is the text that the prompt asks for, between double quotes, legible in the image? METHOD section 6, read by rapidocr."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.text import edit_distance

from rtdmd_lightning.rewards.base import Reward, grey_levels
from rtdmd_lightning.rewards.mixture import RewardGone
from rtdmd_lightning.rewards.reader import Read, rapidocr, read_in_worker, start_worker
from rtdmd_lightning.utils.errors import UserError, require


class OCRReward(Reward):
    """1 where the wanted text can be read, down to 0 as more of its letters are wrong; lower-cased and without spaces.

    rapidocr ships its models, so nothing is downloaded; it runs on the CPU whatever the images are on.

    Args:
        threads: CPU threads of one process that reads.
        workers: processes that read, beside each process that trains; 0 reads in that process itself. One takes some seconds to
            start, and about a gigabyte.

    Scoring raises RewardGone where one of them has ended.
    """

    name = "ocr"
    differentiable = False

    def __init__(self, threads: int = 1, workers: int = 0) -> None:
        require(workers >= 0, f"ocr: workers must be at least 0, not {workers}")
        self.threads, self.workers = threads, workers

    def load(self) -> None:
        self._read: Callable[[Sequence[np.ndarray]], Iterable[str]] = (
            ReaderPool(rapidocr, self.threads, self.workers) if self.workers else partial(map, rapidocr(self.threads))
        )

    def score(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        wanted = [quoted_text(prompt) for prompt in prompts]
        pixels = grey_levels(images).permute(0, 2, 3, 1).cpu().numpy()
        texts = self._read([picture[:, :, ::-1].copy() for picture in pixels])  # the reader wants BGR
        scores = [text_score(text, of_prompt) for text, of_prompt in zip(texts, wanted, strict=True)]
        return torch.tensor(scores, device=images.device)


class ReaderPool:
    """Reads several pictures at a time, each in a process of its own. The processes end with this one, or with the pool.

    Args:
        make: a reader with so many CPU threads, in each of the processes.
        threads: of each.
        workers: how many processes.

    Making it waits for them. It and reading raise RewardGone where one of them has ended.
    """

    def __init__(self, make: Callable[[int], Read], threads: int, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (make, threads))
        self._workers = workers
        self._each(os.getpid, [()] * workers)

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[str]:
        """The text of each picture, in their order."""
        return self._each(read_in_worker, [(picture,) for picture in pictures])

    def _each(self, function: Callable, arguments: Sequence[tuple]) -> list:
        try:
            results = [self._pool.submit(function, *some) for some in arguments]
            return [result.result() for result in results]
        except BrokenProcessPool as error:
            raise RewardGone(
                f"ocr: one of the {self._workers} processes that read has ended; if memory is short set fewer workers, "
                "workers 0 reads in the training process"
            ) from error


def quoted_text(prompt: str) -> str:
    """What stands between the first two double quotes. Raises UserError for a prompt without any."""
    parts = prompt.split('"')
    if len(parts) < 3 or not parts[1].strip():
        raise UserError(f'ocr: the prompt must hold the wanted text between double quotes ("): {prompt}')
    return parts[1]


def text_score(read: str, wanted: str) -> float:
    """1 where `wanted` is contained in `read`, else `1 - min(edit distance, n)/n` with n the length of `wanted`."""
    read, wanted = (text.lower().replace(" ", "") for text in (read, wanted))
    if wanted in read:
        return 1.0
    distance = int(edit_distance([read], [wanted], reduction="sum"))
    return 1 - min(distance, len(wanted)) / len(wanted)
