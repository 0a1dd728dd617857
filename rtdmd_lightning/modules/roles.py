"""Generator, fake score, teacher and EMA as roles on one base: how they are built, evaluated and saved."""

from abc import ABC
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from rtdmd_lightning import roles as adapters
from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.origin import ORIGIN_KEY, Origin, origin
from rtdmd_lightning.modules.settings import SamplerSettings
from rtdmd_lightning.roles import lora
from rtdmd_lightning.roles.adapter import SCALE_KEY
from rtdmd_lightning.roles.lora import AdapterRoles, LoraSettings
from rtdmd_lightning.roles.sharding import shard
from rtdmd_lightning.sampling.rollout import StepNoise, rollout
from rtdmd_lightning.sampling.structures import Conditioning, Trajectory
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom

GENERATOR, FAKE_SCORE, TEACHER, EMA = "generator", "fake_score", "teacher", "generator_ema"
SHARDED_KEY = "saved_under_fsdp2"


class RolesModule(L.LightningModule, ABC):
    """The roles, without what trains them.

    Args:
        backbone: which model family, from where.
        sampler: the student's few-step sampler.
        lora: shape of the adapters.
        initial_adapter: what the generator (and its EMA) start from instead of the base: a file or folder in any format that
            `adapters.read` knows, of `lora`'s rank and alpha.
        seed: of all noise and of every random choice (linked from `seed_everything`).
    """

    def __init__(
        self,
        backbone: Backbone,
        sampler: SamplerSettings = SamplerSettings(),
        lora: LoraSettings = LoraSettings(),
        initial_adapter: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # `load_state_dict` checks the keys itself: the frozen base is in no checkpoint
        self.backbone = backbone
        self.sampler = sampler
        self.lora = lora
        self.initial_adapter = initial_adapter
        self.seed = seed
        self.transformer: torch.nn.Module
        self.generator_base: torch.nn.Module | None
        self._configured = False

    def frozen_adapters(self) -> dict[str, str]:
        """Adapters that lie frozen under the trained ones: adapter name to a file in any format that `adapters.read` knows."""
        return {}

    def adapter_stacks(self) -> dict[str, tuple[str, ...]]:
        """Which adapters are active together in which role."""
        return {GENERATOR: (GENERATOR,), FAKE_SCORE: (FAKE_SCORE,), TEACHER: (), EMA: (EMA,)}

    def origin(self) -> Origin:
        """What a checkpoint must share with this run to be resumed by it."""
        return origin(type(self).__name__, self.lora, self.frozen_adapters())

    # Building ---------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError for what `configure_model` would refuse, as far as it can be told without reading weights."""
        self.backbone.check()
        self.backbone.check_teacher()
        self.backbone.sigmas(self.sampler.steps)
        self.frozen_adapters()

    def configure_model(self) -> None:
        """Load the base, inject the adapters and shard, once: Lightning may call this again."""
        if self._configured:
            return
        self.frozen = {name: adapters.read(path) for name, path in self.frozen_adapters().items()}
        initial = adapters.read(self.initial_adapter) if self.initial_adapter else None
        if initial is not None:
            adapters.check_settings(initial, self.lora)  # a wrong file is told in a second
        self.transformer, self.generator_base = self.backbone.load(), self.backbone.load_generator_base()
        stacks = self.adapter_stacks()
        home = {adapter: self.base_of(role) for role, stack in stacks.items() for adapter in stack}
        for name, adapter in self.frozen.items():
            adapters.inject(home[name], name, adapter)
        for name in (GENERATOR, FAKE_SCORE, EMA):
            lora.add_adapter(home[name], name, self.lora, self.backbone.lora_targets)
        if initial is not None:
            lora.load_adapter_state_dict(home[GENERATOR], GENERATOR, initial.state_dict(), source=initial.source)
        started = lora.adapter_state_dict(home[GENERATOR], GENERATOR)
        lora.load_adapter_state_dict(home[EMA], EMA, started, source=GENERATOR)
        if self._is_sharded:
            assert self.device_mesh is not None
            for base in self.bases:
                shard(base, self.device_mesh["data_parallel"], self.backbone.block_classes)
        self._configured = True
        self._origin = self.origin()  # as it is now: the cold start's files may change meanwhile
        self._parameters_of = {
            name: list(lora.adapter_parameters(home[name], name).values()) for name in (GENERATOR, FAKE_SCORE, EMA)
        }
        self.roles = AdapterRoles(torch.nn.ModuleList(self.bases), stacks, trainable=(GENERATOR, FAKE_SCORE))
        self.embed = PromptEmbedder(self.backbone)
        self.sigmas = self.backbone.sigmas(self.sampler.steps)

    @property
    def bases(self) -> list[torch.nn.Module]:
        return [self.transformer] if self.generator_base is None else [self.transformer, self.generator_base]

    def base_of(self, role: str) -> torch.nn.Module:
        """Teacher and fake score share a base; the generator's roles may have one of their own (METHOD section 4, FLUX.2)."""
        if self.generator_base is None or role in (FAKE_SCORE, TEACHER):
            return self.transformer
        return self.generator_base

    @property
    def _is_sharded(self) -> bool:
        return self._trainer is not None and isinstance(self._trainer.strategy, ModelParallelStrategy)

    def on_fit_start(self) -> None:
        self.backbone.to(self.device)
        for base in self.bases:
            base.eval()

    def parameters_of(self, adapter: str) -> list[torch.nn.Parameter]:
        assert self._configured, "configure_model() comes first"
        return self._parameters_of[adapter]

    # Evaluating -------------------------------------------------------------------------------------------------------

    def velocity(self, role: str, latents: Tensor, sigma: Tensor | float, conditioning: Conditioning) -> Tensor:
        """One forward pass in a role; `sigma` is a number or `[B]`."""
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        with self.roles.role(role):
            return self.backbone.velocity(self.base_of(role), latents, levels, conditioning)

    @torch.no_grad()
    def teacher_velocity(
        self, latents: Tensor, sigma: Tensor | float, conditioning: Conditioning, guidance_scale: float
    ) -> Tensor:
        """The frozen base with guidance, as its family does it: classifier-free, or by an input of the model."""
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(len(latents))
        velocity = partial(self.velocity, TEACHER)
        empty = self.embed([""], latents.device)
        return self.backbone.guided_velocity(velocity, latents, levels, conditioning, empty, guidance_scale)

    @torch.no_grad()
    def roll_out(
        self,
        role: str,
        conditioning: Conditioning,
        random: SampleRandom,
        steps: int | None = None,
        eta: float | None = None,
        step_noise: StepNoise | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> Trajectory:
        """A role's first `steps` steps of the few-step sampler (all by default), without gradient.

        `eta` replaces the sampler's, `step_noise` each sample's own noise; see `rollout` for `state_dtype`.
        """
        shape = self.backbone.latent_shape()
        return rollout(
            lambda latents, sigma: self.velocity(role, latents, sigma, conditioning),
            random.normal("start", shape),
            sigmas=self.sigmas if steps is None else self.sigmas[: steps + 1],
            eta=self.sampler.eta if eta is None else eta,
            step_noise=step_noise or (lambda step: random.normal(f"step {step}", shape)),
            state_dtype=state_dtype,
        )

    @torch.no_grad()
    def generate(self, prompts: list[str], indices: Sequence[int], *, seed: int, role: str = EMA) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 1] from the few-step student; sample i's noise depends on (seed, indices[i]) only."""
        random = SampleRandom(seed, indices, self.device)
        trajectory = self.roll_out(role, self.embed(prompts, self.device), random, eta=self.sampler.eta_of_images)
        return self.backbone.decode(trajectory.samples).clamp(0, 1)

    # Saving -----------------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Adapters only: the frozen base is in no checkpoint."""
        kept = (GENERATOR, FAKE_SCORE, EMA)
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if any(f".{name}." in key for name in kept)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        expected = self.state_dict().keys()
        if differing := expected ^ state_dict.keys():
            raise UserError(
                f"the checkpoint does not fit this model: {len(differing)} of {len(expected)} keys differ, "
                f"e.g. {min(differing)!r}"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ORIGIN_KEY], checkpoint[SHARDED_KEY] = self._origin, self._is_sharded
        checkpoint[SCALE_KEY] = self.lora.scale  # no reader could tell it from the adapters
