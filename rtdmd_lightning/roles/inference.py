"""Drawing images without a trainer: a base, frozen adapters on top of it, a schedule."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from rtdmd_lightning import roles as lora
from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.quantization import check_device, quantize
from rtdmd_lightning.objectives import evenly_spaced
from rtdmd_lightning.roles.apply import activate
from rtdmd_lightning.roles.drawing import draw
from rtdmd_lightning.sampling.sampler import CPSSampler, check_eta, check_steps
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom

METHOD_STEPS = (1000, 750, 500, 250)


class InferenceModel:
    """A base with a stack of frozen adapters, applied in order, that draws images.

    Args:
        backbone: which model family, from where.
        adapters: files or folders in any format that `rtdmd_lightning.roles.read` reads, e.g. `[cold_start, rtdmd]`.
        steps: raw timesteps, shifted by the family's own schedule (METHOD section 1); a number N is the schedule that the
            family's diffusers pipeline itself uses for N steps (what the teacher is drawn with).
        guidance_scale: above 1 is the teacher's guidance (classifier-free: both branches in one forward pass of twice the
            batch; or the model's guidance input). 1 draws as the student is trained: without CFG, and where the model has a
            guidance input, with the backbone's. Unless given, it is 1 with adapters, and without them the base's own
            (`Backbone.base_guidance_scale`): 3.5 for FLUX.1-dev, 1 for other models.
        eta: stochasticity of the CPS steps; 0 is the Euler ODE sampler.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Sequence[str] = (),
        steps: int | Sequence[int] = METHOD_STEPS,
        guidance_scale: float | None = None,
        eta: float = 0.9,
    ) -> None:
        _check_sampler(steps, eta)
        if guidance_scale is not None and guidance_scale < 1:
            raise UserError(f"guidance_scale must be at least 1 (1 is no guidance), not {guidance_scale}")
        self.backbone = backbone
        self.adapters = tuple(adapters)
        self.steps = steps
        self._guidance_scale = guidance_scale
        self.eta = eta
        self.transformer: nn.Module
        self.sampler: CPSSampler
        self.device: torch.device

    def load(self, device: torch.device) -> None:
        """Read base and adapters and move them to the device. Raises UserError where a file is missing or does not fit."""
        quantization = self.backbone.quantization
        check_device(quantization, device)
        read = [lora.read(path) for path in self.adapters]  # small files first: a wrong one is told in a second
        transformer = self.backbone.load()
        if read and (own := self.backbone.load_generator_base()) is not None:
            transformer = own  # adapters belong to the generator, and there it starts from weights of its own
        for name, adapter in zip(self.adapter_names, read, strict=True):
            lora.inject(transformer, name, adapter)
        activate(transformer, self.adapter_names)
        if quantization != "none":
            quantize(transformer, quantization, self.backbone.block_classes, device)
        self.transformer = transformer.to(device).eval()
        self.backbone.to(device)
        self.device = device
        self.embed = PromptEmbedder(self.backbone)
        self.use_sampler(self.steps, self.eta)

    def use_sampler(self, steps: int | Sequence[int], eta: float) -> None:
        """From now on draw in these steps, with this eta; both as for the class."""
        _check_sampler(steps, eta)
        self.steps, self.eta = steps, eta
        own = self.backbone
        sigmas = own.pipeline_sigmas(steps) if isinstance(steps, int) else own.sigmas(list(steps))
        self.sampler = CPSSampler(sigmas, eta)

    def with_first(
        self, count: int, steps: int | Sequence[int], guidance_scale: float | None, eta: float
    ) -> "InferenceModel":
        """A model with the first `count` of the adapters, on the same networks in memory; the rest as for the class.

        It is for use at once: these adapters are active until the next one is asked for.
        """
        model = InferenceModel(self.backbone, self.adapters[:count], steps, guidance_scale, eta)
        model.transformer, model.device, model.embed = self.transformer, self.device, self.embed
        model.use_sampler(steps, eta)
        activate(self.transformer, model.adapter_names)
        return model

    @property
    def adapter_names(self) -> list[str]:
        """What the adapters are called in the transformer."""
        return [f"adapter_{position}" for position in range(len(self.adapters))]

    @property
    def guidance_scale(self) -> float:
        """The one that it draws with."""
        if self._guidance_scale is not None:
            return self._guidance_scale
        return 1.0 if self.adapters else self.backbone.base_guidance_scale

    @torch.no_grad()
    def generate(self, prompts: list[str], indices: Sequence[int], *, seed: int) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 1]; sample i's noise depends on (seed, indices[i]) only, whatever the batch."""
        conditioning = self.embed(prompts, self.device)
        random = SampleRandom(seed, indices, self.device)
        return draw(self.backbone, self.sampler, self.velocity, conditioning, random)

    def velocity(self, latents: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """The velocity at one level, guided where there is guidance."""
        levels = torch.full((len(latents),), sigma, dtype=torch.float32, device=latents.device)
        plain = partial(self.backbone.velocity, self.transformer)
        if self.guidance_scale == 1:
            return plain(latents, levels, conditioning)
        empty = self.embed([""], latents.device)
        return self.backbone.guided_velocity(plain, latents, levels, conditioning, empty, self.guidance_scale)


def _check_sampler(steps: int | Sequence[int], eta: float) -> None:
    if isinstance(steps, int):
        even_steps(steps)
    else:
        check_steps(steps, "steps")
    check_eta(eta, "eta")


def even_steps(count: int) -> list[int]:
    """`count` evenly spaced raw timesteps from 1000 down; four of them are METHOD section 1's 1000, 750, 500, 250."""
    if not 1 <= count <= 1000:
        raise UserError(f"the number of steps must lie between 1 and 1000, not {count}")
    return [round(step) for step in evenly_spaced(count, start=1000)]
