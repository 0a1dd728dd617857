"""Images that wait for the one scoring thread, batched across the requests they came with, and the answers."""

import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardError, check_scores
from rtdmd_lightning.rewards.serving.wire import ScoreRequest
from rtdmd_lightning.utils.errors import UserError

KEEP_SECONDS = 3600.0  # how long an answer stays for a client that lost it


@dataclass(frozen=True)
class Failure:
    """What a reward raised, told; not the exception, whose traceback would keep a batch of images in memory."""

    told: str
    user_error: bool


class Job:
    """A request on its way to its scores, or to a failure."""

    def __init__(self, images: int) -> None:
        self.scores: list[float | None] = [None] * images
        self.failure: Failure | None = None
        self.finished = float("inf")

    @property
    def done(self) -> bool:
        return self.failure is not None or None not in self.scores


@dataclass(frozen=True, eq=False)
class WaitingImage:
    """One image of a job: `pixels` `[3, H, W]` uint8, `index` its place in the job."""

    job: Job
    index: int
    pixels: Tensor
    prompt: str
    metadata: dict


Scored = list[tuple[WaitingImage, float | Failure]]


class ScoringQueue:
    """Jobs by id; any number of threads ask, one scores.

    Args:
        batch_size: images scored at a time, of one size, from as many requests as it takes.
        max_waiting: images beyond which no more requests are taken.
        max_pixels: of all images that wait or are scored, and so of one request: a PNG of a few bytes can unfold into gigabytes.
            They are counted before anything is unfolded.
    """

    def __init__(self, batch_size: int, max_waiting: int, max_pixels: int) -> None:
        self.batch_size = batch_size
        self.max_waiting = max_waiting
        self.max_pixels = max_pixels
        self.scored = 0
        self._pixels = 0  # that are taken of max_pixels
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[WaitingImage] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """Images that no batch has taken yet."""
        return len(self._waiting)

    def submit(self, key: str, request: ScoreRequest) -> bool:
        """Queue a request, unless one of that id is known: then this is a retry. False where too many images wait.

        Raises UserError for images that cannot be unfolded; then the request is as good as never sent.
        """
        with self._changed:
            self._forget_old_answers()
            if key in self._jobs:
                return True
            if len(self._waiting) >= self.max_waiting or self._pixels + request.pixels > self.max_pixels:
                return False
            job = self._jobs[key] = Job(len(request.prompts))
            self._pixels += request.pixels
        try:
            images = request.images()
        except UserError:
            with self._changed:
                del self._jobs[key]
                self._pixels -= request.pixels
            raise
        with self._changed:
            rows = enumerate(zip(images, request.prompts, request.metadata, strict=True))
            self._waiting.extend(WaitingImage(job, index, *row) for index, row in rows)
            self._changed.notify_all()
            return True

    def job(self, key: str, hold: float) -> Job | None:
        """The job of that id, as soon as it is done or `hold` seconds have passed; None where the id is not known."""
        with self._changed:
            job = self._jobs.get(key)
            if job is not None:
                self._changed.wait_for(lambda: job.done, hold)
            return job

    def next_batch(self) -> list[WaitingImage]:
        """Up to `batch_size` images of one size, in the order they came; waits for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            size = self._waiting[0].pixels.shape
            batch: list[WaitingImage] = []
            while self._waiting and len(batch) < self.batch_size and self._waiting[0].pixels.shape == size:
                batch.append(self._waiting.popleft())
            return batch

    def settle(self, scored: Scored) -> None:
        """Hand in what became of a batch. A job that failed loses its other images."""
        with self._changed:
            for image, outcome in scored:
                if isinstance(outcome, Failure):
                    image.job.failure = outcome
                else:
                    image.job.scores[image.index] = outcome
                if image.job.done:
                    image.job.finished = time.monotonic()
            lost = [image for image in self._waiting if image.job.failure is not None]
            self._waiting = deque(image for image in self._waiting if image.job.failure is None)
            self._pixels -= sum(image.pixels[0].numel() for image in (*lost, *(image for image, _ in scored)))
            self.scored += len(scored)
            self._changed.notify_all()

    def _forget_old_answers(self) -> None:
        limit = time.monotonic() - KEEP_SECONDS
        self._jobs = {key: job for key, job in self._jobs.items() if not job.finished < limit}


def score_forever(reward: Reward, queue: ScoringQueue, device: torch.device) -> None:
    """The scoring thread."""
    while True:
        queue.settle(score_batch(reward, queue.next_batch(), device))


def score_batch(reward: Reward, batch: list[WaitingImage], device: torch.device) -> Scored:
    """Every image with its score, or with what the reward raised.

    Where a batch of several requests fails, each request's images are tried alone: only those at fault get the error.
    """
    try:
        return list(zip(batch, _score(reward, batch, device), strict=True))
    except (Exception, SystemExit) as error:
        jobs = list(dict.fromkeys(image.job for image in batch))
        if len(jobs) == 1:
            traceback.print_exc()  # the client gets one line; whoever keeps the server wants to see where
            user_error = isinstance(error, UserError)
            failure = Failure(str(error) if user_error else repr(error), user_error)
            return [(image, failure) for image in batch]
    parts = [[image for image in batch if image.job is job] for job in jobs]
    return [outcome for part in parts for outcome in score_batch(reward, part, device)]


@torch.no_grad()
def _score(reward: Reward, batch: list[WaitingImage], device: torch.device) -> list[float]:
    images = torch.stack([image.pixels for image in batch]).to(device).float().div_(255)
    scores = reward.score(images, [image.prompt for image in batch], [image.metadata for image in batch])
    try:
        check_scores(reward.name, scores, len(batch))
    except RewardError as error:
        raise UserError(str(error)) from error
    return scores.float().tolist()
