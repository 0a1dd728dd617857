"""Stage 1 on whole transformers, and the same update written down once more without the module, its roles and its optimizers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import FakeScoreLoss, MatchingLoss
from rtdmd_lightning.losses.terms import total
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings
from rtdmd_lightning.roles.drawing import roll_out
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.sampling.structures import ExecutedStep
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.tiny import tiny_backbone

# A large eps makes Adam's first steps proportional to the gradient: rounding cannot flip a step's sign.
OPTIMIZER = OptimizerSettings(learning_rate=3e-3, eps=1e-2, weight_decay=0.1, max_grad_norm=0.5)
SETTINGS = {"batch_size": 4, "guidance_scale": (3.0, 3.0), "fake_update_ratio": 2, "trainable": "full"}
OPTIMIZERS = {"generator_optimizer": OPTIMIZER, "fake_optimizer": OPTIMIZER, "ema": EMASettings(decay=0.8)}


def whole_module(folder: Path, backbone: dict | None = None, **options) -> ACDMDModule:
    """A configured module."""
    module = ACDMDModule(tiny_backbone(folder, **backbone or {}), **SETTINGS | OPTIMIZERS | options)
    module.configure_model()
    return module


def perturb(module: ACDMDModule) -> None:
    """Every role's weights off where they start, each in its own direction."""
    generator = torch.Generator().manual_seed(1)
    for role in module.roles.own:
        for parameter in module.roles.parameters_of(role):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


class Plain:
    """Transformers by role, AdamW and the average, in plain torch; `losses` asks it for velocities as it asks `Roles`."""

    def __init__(self, module: ACDMDModule, load: Callable[[], nn.Module], precision: str) -> None:
        self.module, self.backbone, self.precision = module, module.backbone, precision
        self.networks = {role: load().eval() for role in (GENERATOR, FAKE_SCORE, TEACHER, EMA)}
        self.moments = {
            role: [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.networks[role].parameters()]
            for role in (GENERATOR, FAKE_SCORE)
        }
        self.updates = dict.fromkeys(self.moments, 0)
        self.fake_score_loss = FakeScoreLoss(self, module.sampler, module.matching)
        self.matching_loss = MatchingLoss(self, module.sampler, module.matching, module.embed)

    def autocast(self) -> AbstractContextManager:
        if self.precision == "32-true":
            return nullcontext()
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)

    def velocity(self, role, latents, sigma, conditioning) -> Tensor:
        levels = torch.as_tensor(sigma, dtype=torch.float32).expand(len(latents))
        return self.networks[role](
            hidden_states=latents,
            timestep=1000 * levels,
            encoder_hidden_states=conditioning.embeds,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def teacher_velocity(self, latents, sigma, conditioning, empty, guidance_scale) -> Tensor:
        both = self.velocity(
            TEACHER,
            torch.cat([latents] * 2),
            sigma.repeat(2),
            conditioning.cat([conditioning, empty.expand(len(latents))]),
        )
        with_prompt, without = both.chunk(2)
        return without + guidance_scale * (with_prompt - without)

    def cycle(self, batch: PromptBatch, number: int) -> None:
        """Two updates of the fake score and one of the generator; the average moves before the generator's and after it."""
        module, decay = self.module, self.module.ema.decay
        fake_updates, last = module.draw_updates(number)
        conditioning = module.embed(batch.prompts, torch.device("cpu"))
        random = SampleRandom(module.seed, batch.indices, torch.device("cpu"))
        with self.autocast():
            trajectory = roll_out(
                self.backbone, module.sampler, lambda *of: self.velocity(GENERATOR, *of), conditioning, random
            )
        for index, update in enumerate(fake_updates):
            with self.autocast():
                terms = self.fake_score_loss(
                    trajectory.step(update.stop - 1), conditioning, random, f"fake update {index}"
                )
            self.update(FAKE_SCORE, total(terms))
        self.average(decay)
        with self.autocast():
            step = self.last_step(trajectory.states[last.stop - 1], last.stop - 1, conditioning, random)
            guidance = module.matching.draw_guidance(module.seed, number)
            terms = self.matching_loss(step, conditioning, random, guidance)
        self.update(GENERATOR, total(terms))
        self.average(decay)

    def last_step(self, state, number, conditioning, random) -> ExecutedStep:
        sigma, sigma_next = self.module.sampler.sigmas[number : number + 2]
        velocity, noise = (
            self.velocity(GENERATOR, state, sigma, conditioning),
            random.normal(f"step {number}", state.shape[1:]),
        )
        reached = self.module.sampler.step(state, velocity, sigma=sigma, sigma_next=sigma_next, noise=noise)
        return ExecutedStep(sigma, sigma_next, state, velocity, noise, reached)

    def update(self, role: str, loss: Tensor) -> None:
        """Clipped AdamW, as Loshchilov and Hutter write it."""
        parameters, of = list(self.networks[role].parameters()), OPTIMIZER
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        scale = min(1.0, of.max_grad_norm / (norm.item() + 1e-6))
        self.updates[role] += 1
        count = self.updates[role]
        with torch.no_grad():
            for parameter, gradient, (first, second) in zip(parameters, gradients, self.moments[role], strict=True):
                if gradient is None:
                    continue
                first.mul_(of.betas[0]).add_((1 - of.betas[0]) * scale * gradient)
                second.mul_(of.betas[1]).add_((1 - of.betas[1]) * (scale * gradient) ** 2)
                step = (first / (1 - of.betas[0] ** count)) / ((second / (1 - of.betas[1] ** count)).sqrt() + of.eps)
                parameter -= of.learning_rate * (step + of.weight_decay * parameter)

    def average(self, decay: float) -> None:
        with torch.no_grad():
            pairs = zip(self.networks[EMA].parameters(), self.networks[GENERATOR].parameters(), strict=True)
            for average, parameter in pairs:
                average.copy_(decay * average + (1 - decay) * parameter)


def stock(folder: Path) -> nn.Module:
    """As diffusers has it."""
    return SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
