"""What every algorithm here shares: roles on one base, a sampler, and optimizers that take turns.

Optimization is manual. Only the first optimizer, the generator's, is wrapped by Lightning, so `trainer.global_step`,
`max_steps` and checkpoint intervals count generator updates. Gradient clipping is done here, since the trainer's option
refuses manual optimization.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses.terms import Terms
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.memory import MemorySettings
from rtdmd_lightning.modules.notes import on_host
from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings, RoleOptimizers
from rtdmd_lightning.modules.origin import ORIGIN_KEY, Origin, check_keys, origin
from rtdmd_lightning.modules.strategies import FSDP2
from rtdmd_lightning.modules.trainable import Trainable, build_roles, check_whole, shape_of
from rtdmd_lightning.roles import Adapter, read
from rtdmd_lightning.roles.adapter import SCALE_KEY
from rtdmd_lightning.roles.compiling import Compile, compile_blocks
from rtdmd_lightning.roles.drawing import draw, roll_out
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import EMA, TEACHER, Roles, Stacks
from rtdmd_lightning.sampling.sampler import SAMPLERS, Sampler, SamplerName, SamplerSettings, StepNoise
from rtdmd_lightning.sampling.structures import Conditioning, Trajectory
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.randomness import SampleRandom

SHARDED_KEY = "saved_under_fsdp2"


class FewStepModule(L.LightningModule, ABC):
    """Trains a few-step generator beside a frozen base; an algorithm is a subclass with a `training_step`.

    Args:
        backbone: which model family, from where.
        batch_size: samples of one batch, over all processes.
        memory: how it is fitted into less memory.
        optimizers: of each role that is trained, the generator first.
        sampler: the few-step sampler's steps and stochasticity.
        sampler_name: which sampler.
        lora: shape of the adapters.
        initial_adapter: what the generator starts from instead of the base: a file or folder in any format that `roles.read`
            knows, of `lora`'s rank and alpha.
        ema: how the generator's average follows it.
        ema_moves: how many moves of the average a training step has where `ema.moves` does not say.
        seed: of all noise and of every random choice.
        compile: `blocks` compiles the transformer's blocks; see `roles/compiling.py`.
        trainable: `lora`, adapters on the base, or `full`, whole transformers beside it.
    """

    images_per_prompt: int = 1
    """How many consecutive samples share a prompt."""

    read_adapter: Callable[[str], Adapter] = staticmethod(read)
    """From a file that `frozen_adapters` names."""

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        memory: MemorySettings,
        optimizers: Mapping[str, OptimizerSettings],
        sampler: SamplerSettings,
        lora: LoraSettings,
        initial_adapter: str | None,
        ema: EMASettings,
        ema_moves: int,
        seed: int,
        compile: Compile | None,
        sampler_name: SamplerName = "cps",
        trainable: Trainable = "lora",
    ) -> None:
        super().__init__()
        require(batch_size >= 1, f"model.batch_size must be at least 1, not {batch_size}")
        if trainable == "full":
            check_whole(backbone, initial_adapter)
        self.automatic_optimization = False
        self.strict_loading = False  # `load_state_dict` checks the keys itself: the frozen base is in no checkpoint
        self.backbone, self.batch_size, self.seed = backbone, batch_size, seed
        self.memory, self.micro_batch_size = memory, memory.micro_batch_size
        self.optimize = RoleOptimizers(self, optimizers)
        self.sampler_settings, self.sampler_name = sampler, sampler_name
        self.is_compiled = compile == "blocks"
        self.trainable, self.lora, self.initial_adapter = trainable, lora, initial_adapter
        self.ema, self.ema_moves = ema, ema.moves or ema_moves
        self.roles: Roles
        self.sampler: Sampler
        self.embed: PromptEmbedder

    # What an algorithm says of itself -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def batches_per_step(self) -> int:
        """How many batches of `batch_size` samples one training step consumes."""

    @abstractmethod
    def stacks(self) -> Stacks:
        """The run's roles. What no stack names is not built."""

    def frozen_adapters(self) -> dict[str, str]:
        """Adapters that lie frozen under the trained ones: adapter name to a file in any format that `roles.read` knows; of
        whole transformers to a folder with the one that is started from."""
        return {}

    # Building -----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError for what `configure_model` would refuse, as far as it can be told without reading weights."""
        self.backbone.check()
        self.backbone.sigmas(self.sampler_settings.steps)
        frozen = self.frozen_adapters()
        if self.trainable == "full":
            for folder in frozen.values():
                self.backbone.check_transformer(folder)
        if TEACHER in self.stacks():
            self.backbone.check_teacher()

    def configure_model(self) -> None:
        """Read the base, build the roles and shard them, once: Lightning may call this again."""
        if "roles" in self._modules:
            return
        self.backbone.offloaded, self.backbone.encoded_at_once = self.memory.offload, self.micro_batch_size
        strategy = None if self._trainer is None else self._trainer.strategy
        self.roles = build_roles(
            self,
            device=torch.device("cpu") if strategy is None else strategy.root_device,
            sharding=strategy.sharding() if isinstance(strategy, FSDP2) else None,
        )
        if self.is_compiled:
            for base in self.roles.bases:
                compile_blocks(base, self.backbone.block_classes, len(self.roles.stacks))
        self._origin = self.origin()  # as it is now: the cold start's files may change meanwhile
        self.embed = PromptEmbedder(self.backbone)
        sigmas = self.backbone.sigmas(self.sampler_settings.steps)
        self.sampler = SAMPLERS[self.sampler_name](sigmas, self.sampler_settings.eta)
        self.build_losses()

    @abstractmethod
    def build_losses(self) -> None:
        """Make the terms, now that there are roles and a sampler."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.optimize.make()

    def on_fit_start(self) -> None:
        self.backbone.to(self.device)
        for base in self.roles.bases:
            base.eval()

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        """A batch of prompts holds no tensor (and Lightning's walk through it refuses frozen dataclasses)."""
        return batch

    @property
    def is_sharded(self) -> bool:
        """Does FSDP2 hold the bases in parts?"""
        return self._trainer is not None and isinstance(self._trainer.strategy, FSDP2)

    # Sampling -----------------------------------------------------------------------------------------------------------

    def random_of(self, batch: PromptBatch) -> SampleRandom:
        return SampleRandom(self.seed, batch.indices, self.device)

    def roll_out(
        self,
        role: str,
        conditioning: Conditioning,
        random: SampleRandom,
        *,
        steps: int | None = None,
        step_noise: StepNoise | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> Trajectory:
        """A role's first `steps` steps (all by default), without gradient; see `Sampler.rollout`."""
        velocity = partial(self.roles.velocity, role)
        rest: dict[str, Any] = {"steps": steps, "step_noise": step_noise, "state_dtype": state_dtype}
        return roll_out(self.backbone, self.sampler, velocity, conditioning, random, **rest)

    def generate(self, prompts: list[str], indices: Sequence[int], *, seed: int, role: str = EMA) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 1] from the few-step student; sample i's noise depends on (seed, indices[i]) only."""
        sampler = self.sampler.with_eta(self.sampler_settings.eta_of_images)
        conditioning, random = self.embed(prompts, self.device), SampleRandom(seed, indices, self.device)
        return draw(self.backbone, sampler, partial(self.roles.velocity, role), conditioning, random)

    # Averaging and logging --------------------------------------------------------------------------------------------

    def move_average(self, moves: int) -> None:
        """Move the average towards the generator as it is now; `moves` are offered, see `EMASettings`."""
        kept = self.ema.kept(moves, updates=self.global_step)
        if kept < 1:
            self.roles.move_average(kept)

    def log_terms(self, role: str, terms: Terms, part: str = "") -> None:
        """Each term by its name, unweighted, and its weight; `part` is the segment or step that it is of."""
        suffix = f"_{part}" if part else ""
        self.log_dict({f"{role}/{name}{suffix}": term.value.detach() for name, term in terms.items()})
        self.log_dict({f"weight/{role}/{name}": on_host(term.weight) for name, term in terms.items()})

    def gather(self, values: Tensor) -> Tensor:
        """`[N]` of every process as `[processes * N]`."""
        gathered = self.all_gather(values.to(self.device))
        assert isinstance(gathered, Tensor)
        return gathered.flatten()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Log the seconds that the body takes as `time/NAME`.

        An accelerator is not waited for: an update does so itself, before its optimizer's step, which counts for the next body.
        """
        start = time.perf_counter()
        yield
        self.log(f"time/{name}", on_host(time.perf_counter() - start))

    # Saving -------------------------------------------------------------------------------------------------------------

    def origin(self) -> Origin:
        """What a checkpoint must share with this run to be resumed by it."""
        shape = shape_of(self.trainable, self.lora)
        return origin(type(self).__name__, shape, self.frozen_adapters(), self.backbone.base_identity())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is new only: the frozen base is in no checkpoint."""
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if any(f".{name}." in key for name in self.roles.own)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        check_keys(state_dict.keys(), self.state_dict().keys())
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ORIGIN_KEY], checkpoint[SHARDED_KEY] = self._origin, self.is_sharded
        if self.trainable == "lora":
            checkpoint[SCALE_KEY] = self.lora.scale  # no reader could tell it from the adapters
