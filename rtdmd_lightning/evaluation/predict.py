"""Drawing and scoring under Lightning's predict loop, on one process or on many."""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from rtdmd_lightning.evaluation.images import read_image, write_image
from rtdmd_lightning.evaluation.tasks import ImageTask
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardError, one_score_each
from rtdmd_lightning.roles.inference import InferenceModel
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.own_code import errors_of_own_code


class BatchModule(L.LightningModule):
    """A module that goes once over batches of images, this process over its share.

    Args:
        title: what the progress bar says.
        batches: the same on every process.
    """

    def __init__(self, title: str, batches: Sequence[list[ImageTask]]) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may have nothing to do
        self.title = title
        self.batches = batches

    def share(self) -> list[int]:
        """This process's batches: of W processes, r takes every W-th from the r-th on. None is dealt twice."""
        return list(range(self.trainer.global_rank, len(self.batches), self.trainer.world_size))

    def predict_dataloader(self) -> DataLoader:
        # The share is this process's own already: the trainer must not inject a sampler (`use_distributed_sampler: false`).
        return DataLoader(self.share(), batch_size=None, collate_fn=int)  # type: ignore[arg-type]


def missing(tasks: list[ImageTask]) -> list[ImageTask]:
    """Those whose image is not on the disk yet."""
    return [task for task in tasks if not task.path.exists()]


class DrawImages(BatchModule):
    """Draws the images that are not on the disk yet."""

    def __init__(self, title: str, batches: Sequence[list[ImageTask]], model: InferenceModel, seed: int) -> None:
        super().__init__(title, batches)
        self.model = model
        self.seed = seed

    def share(self) -> list[int]:
        """Without the batches that are all there: where nothing is left, no model is loaded."""
        return [position for position in super().share() if missing(self.batches[position])]

    def on_predict_start(self) -> None:
        self.model.load(self.device)

    def predict_step(self, batch: int) -> int:
        """Draws what is missing of a batch; returns how many images that was."""
        tasks = missing(self.batches[batch])
        images = self.model.generate([task.prompt for task in tasks], [task.index for task in tasks], seed=self.seed)
        for image, task in zip(images, tasks, strict=True):
            write_image(image, task.path)
        return len(tasks)

    def on_predict_end(self) -> None:
        del self.model  # the trainer keeps this module; its memory is for the next model


class ScoreTable(Metric):
    """The scores of `count` images, each given by whichever process had it."""

    full_state_update = False
    scores: Tensor
    given: Tensor

    def __init__(self, count: int) -> None:
        super().__init__(sync_on_compute=True)
        # An image is scored once, so the sum over the processes is its score plus zeros: exact.
        self.add_state("scores", torch.zeros(count), dist_reduce_fx="sum")
        self.add_state("given", torch.zeros(count), dist_reduce_fx="sum")

    def update(self, positions: list[int], scores: Tensor) -> None:
        self.scores[positions] += scores.to(self.scores)
        self.given[positions] += 1

    def compute(self) -> Tensor:
        """`[count]`, in the order of the positions."""
        assert (self.given == 1).all(), "every image is scored exactly once"
        return self.scores


class ScoreImages(BatchModule):
    """Reads images from the disk and scores them, on the scale that is reported.

    `table` holds the scores in the order of the flattened batches.
    """

    def __init__(self, title: str, batches: Sequence[list[ImageTask]], reward: Reward) -> None:
        super().__init__(title, batches)
        self.reward = reward
        self.table = ScoreTable(sum(map(len, batches)))
        starts = torch.tensor([0, *map(len, batches)]).cumsum(0).tolist()
        self.positions = [list(range(start, end)) for start, end in pairwise(starts)]

    def on_predict_start(self) -> None:
        # The config's own stays without weights: nine scorers together would fill the memory.
        self.loaded = copy.deepcopy(self.reward)
        with errors_of_own_code():
            self.loaded.to(self.device)

    def predict_step(self, batch: int) -> int:
        """Scores a batch; returns how many images that was."""
        tasks = self.batches[batch]
        images = torch.stack([read_image(task.path) for task in tasks]).to(self.device)
        prompts, metadata = [task.prompt for task in tasks], [task.metadata for task in tasks]
        try:
            scores = one_score_each(self.loaded, images, prompts, metadata) * self.loaded.reported_scale
        except RewardError as error:
            raise UserError(f"{error} (the images are {tasks[0].path} and those after it)") from error
        for score, task in zip(scores.tolist(), tasks, strict=True):
            if not math.isfinite(score):
                raise UserError(f"the reward {self.reward.name} gives {score} for {task.path} ({task.prompt!r})")
        self.table.update(self.positions[batch], scores)
        return len(tasks)

    def on_predict_end(self) -> None:
        del self.loaded


class EvaluationProgressBar(RichProgressBar):
    """Lightning's, saying which entry or reward is at work."""

    @property
    def predict_description(self) -> str:
        module = self.trainer.lightning_module
        assert isinstance(module, BatchModule)
        return module.title
