"""The runs that are measured: shipped configs on one device, through the command line of `fit`, with random weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning import Callback

from rtdmd_lightning import fit
from rtdmd_lightning.benchmarking.networks import TINY_RESOLUTION, random_backbone
from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.benchmarking.rewards import random_rewards, small_rewards
from rtdmd_lightning.fitting.command_line import FitCLI
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.planning.cold_start import place_cold_start
from rtdmd_lightning.planning.weightless import Weightless

ONE_DEVICE = (
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--data.prompts=shapes:train",
)
QUIET = ("--trainer.enable_progress_bar=false",)
CLIP_REWARDS = (
    '--model.rewards={"rewards": ['
    '{"class_path": "rtdmd_lightning.rewards.clipscore.ClipScoreReward"}, '
    '{"class_path": "rtdmd_lightning.rewards.hpsv2.HPSv2Reward"}, '
    '{"class_path": "rtdmd_lightning.rewards.pickscore.PickScoreReward"}], '
    '"weights": {"clipscore": 1.0, "hpsv2": 1.0, "pickscore": 1.0}}'
)


@dataclass(frozen=True)
class PublishedRun:
    """A config as one device runs it.

    Args:
        config: the shipped file.
        options: what sizes it for one device.
        fake_update, generator_update: seconds that one was predicted to take on an H100, by a roofline.
    """

    config: str
    options: tuple[str, ...]
    fake_update: float | None = None
    generator_update: float | None = None


PAPER_RATIO = 10  # fake-score updates of a cycle, configs/cold_start/defaults.yaml
ONE_UPDATE = "--model.fake_update_ratio=1"  # a cycle has one of each update: more cycles in the time that there is
RUNS = {
    "sd35m": PublishedRun("configs/cold_start/sd35m.yaml", ("--model.batch_size=9", ONE_UPDATE), 1.0, 0.6),
    "stage2": PublishedRun(
        "configs/rtdmd/sd35m.yaml",
        ("--model.batch_size=8", "--model.micro_batches=3", "--model.images_per_prompt=24", CLIP_REWARDS),
    ),
    "klein": PublishedRun("configs/cold_start/flux2_klein_4b.yaml", ("--model.batch_size=9", ONE_UPDATE), 3.2, 1.9),
    "flux1": PublishedRun("configs/cold_start/flux1_dev.yaml", ("--model.batch_size=3", ONE_UPDATE), 2.2, 1.2),
}
TINY = (
    f"--model.backbone.resolution={TINY_RESOLUTION}",
    "--model.backbone.max_sequence_length=16",
    "--model.lora.rank=4",
    "--model.lora.alpha=8",
    "--model.batch_size=2",
)
TINY_EPOCH = ("--model.micro_batches=3", "--model.images_per_prompt=6")


@contextmanager
def random_run(
    probe: Probe,
    config: str,
    options: Sequence[str],
    max_steps: int,
    *,
    small: bool = False,
    few_blocks: bool = False,
    place: torch.device | None = None,
    strategy: Sequence[str] = ("--trainer.strategy=auto",),
    callbacks: Sequence[Callback] = (),
) -> Iterator[FitCLI]:
    """A run of some steps on the probe's device, not begun; `small`, `few_blocks` and `place` are those of `random_backbone`.

    `strategy` is options too. A stage 2 gets a random cold start, and rewards of the real shapes with random weights.
    """
    accelerator = f"--trainer.accelerator={'auto' if probe.on_accelerator else 'cpu'}"
    with (
        fit.bare_run(Path(config), [*ONE_DEVICE, *strategy, *options, accelerator, *QUIET], max_steps) as run,
        TemporaryDirectory() as folder,
    ):
        module = run.model
        assert isinstance(module.backbone, PipelineBackbone)
        module.backbone = random_backbone(module.backbone, small=small, few_blocks=few_blocks, place=place)
        if isinstance(module, RTDMDModule):
            source = module.backbone.source
            assert isinstance(source, Weightless)
            place_cold_start(module, source, Path(folder), random_adapter_weight())
            module.rewards = small_rewards() if small else random_rewards(module.rewards, probe.device)
        run.trainer.callbacks += [*callbacks, LeaveTheWeights()]  # type: ignore[attr-defined] # Lightning sets it from elsewhere
        yield run


def random_adapter_weight() -> Callable[[torch.Size], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda shape: 0.02 * torch.randn(shape, generator=generator)


class LeaveTheWeights(Callback):
    """A trainer that ends copies its module to the CPU, which takes longer than what is measured."""

    def on_fit_end(self, trainer, pl_module) -> None:
        del pl_module.roles
