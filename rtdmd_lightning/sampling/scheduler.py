"""The method's sampler for diffusers: `pipe.scheduler = CPSScheduler.from_config(pipe.scheduler.config, eta=0.9)`."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from rtdmd_lightning.objectives import cps_step, dynamic_shift_sigmas, evenly_spaced, shift_sigmas


class CPSScheduler(FlowMatchEulerDiscreteScheduler):
    """Coefficients-preserving sampling (METHOD section 1) in any SD3 or FLUX pipeline of diffusers.

    `pipe(prompt, num_inference_steps=4, guidance_scale=1)` takes the steps of training: evenly spaced raw levels 1, 3/4, 1/2,
    1/4, shifted once, by the configured factor or by the pipeline's mu. `pipe(prompt, sigmas=[...])` takes levels that are
    shifted already, and does not shift them again. The one exception is what FLUX pipelines hand over when the user says
    nothing, evenly spaced levels together with a mu: those are raw, and shifted.

    The scheduler alone does not make a student's images: the pipeline must condition as the training did. `guidance_scale=1`
    is needed everywhere: SD3 and FLUX.2 then do without CFG, and FLUX.1-dev, whose pipeline passes 3.5 by default, gets the
    student's input. SD3's pipeline needs `max_sequence_length=128` too; its own default is 256.

    Pipelines do not hand their generator to the scheduler: set `scheduler.generator` (one, or a list of one for each image) to
    repeat an image, or torch's global seed.

    Args:
        eta: stochasticity in [0, 1]; 0 is the Euler ODE step.
        num_train_timesteps, shift, use_dynamic_shifting, base_shift, max_shift, base_image_seq_len, max_image_seq_len: as in
            `FlowMatchEulerDiscreteScheduler`. Its other ways to bend a schedule are not the method's, and refused.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        eta: float = 0.9,
    ) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], not {eta}")
        bent = (invert_sigmas, shift_terminal, use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas)
        if any(bent) or stochastic_sampling or time_shift_type != "exponential":
            raise ValueError(
                "CPSScheduler has the schedules of SD3 and FLUX only: no inverted, Karras, exponential or beta sigmas, no "
                "shift_terminal, time_shift_type 'exponential', and eta instead of stochastic_sampling"
            )
        # By keyword: diffusers takes positional values for defaults, and drops those when the config goes to another class.
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
        )
        self.generator: torch.Generator | list[torch.Generator] | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """The method's schedule of `num_inference_steps`, or the levels `sigmas`, which are not shifted again.

        `sigmas` fall strictly within (0, 1], without the final 0. Raises ValueError for other levels, for raw `timesteps`, and
        where the shift is dynamic and no mu is given.
        """
        if timesteps is not None:
            raise ValueError("CPSScheduler takes num_inference_steps or sigmas, not timesteps")
        levels = evenly_spaced(num_inference_steps or 0) if sigmas is None else [float(sigma) for sigma in sigmas]
        falls = all(low < high for high, low in itertools.pairwise([1 + 1e-6, *levels, 0.0]))
        if not levels or not falls:
            raise ValueError(
                f"sigmas must fall strictly from at most 1 and stay above 0 (which is appended): got {levels}"
            )
        if sigmas is None or (mu is not None and np.allclose(levels, evenly_spaced(len(levels)), atol=1e-6)):
            levels = self._shifted(levels, mu)
        self.num_inference_steps = len(levels)
        self.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32, device=device)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
        self._step_index: int | None = None
        self._begin_index = None

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One CPS step in float32, returned in the model's dtype. Without a `generator` it is `self.generator`."""
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, sigma_next = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        noise = randn_tensor(
            sample.shape, generator=generator or self.generator, device=sample.device, dtype=torch.float32
        )
        stepped = cps_step(
            sample, model_output, sigma=sigma, sigma_next=sigma_next, eta=self.config.eta, noise=noise
        ).to(model_output.dtype)
        self._step_index = self.step_index + 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=stepped) if return_dict else (stepped,)

    def _shifted(self, levels: list[float], mu: float | None) -> list[float]:
        if not self.config.use_dynamic_shifting:
            return shift_sigmas(levels, shift=self.shift, num_train_timesteps=1)
        if mu is None:
            raise ValueError("the scheduler's shift is dynamic: set_timesteps wants the pipeline's mu")
        return dynamic_shift_sigmas(levels, mu=mu, num_train_timesteps=1)
