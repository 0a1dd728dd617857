"""The scheduler in the stock pipelines against our own rollout, and its schedules."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    FluxPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)

from rtdmd_lightning import CPSScheduler
from rtdmd_lightning.models import Flux2Backbone, FluxBackbone
from rtdmd_lightning.objectives import dynamic_shift_sigmas, flux_mu
from rtdmd_lightning.roles.inference import METHOD_STEPS, InferenceModel
from rtdmd_lightning.sampling.sampler import CPSSampler
from tests.support.tiny import tiny_backbone
from tests.support.tiny_backbones import OPTIONS, save_tiny_flux, save_tiny_flux2

CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "a photo of two crosses"]
SD3_SIGMAS = [1.0, 0.9, 0.75, 0.5]


def generators(start: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + image) for image in range(2)]


def normal(generators, shape) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def our_images(backbone, eta: float, guidance_scale: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Our rollout, and the start that it was given."""
    model = InferenceModel(backbone, guidance_scale=guidance_scale, eta=eta)
    model.load(CPU)
    shape, noise = backbone.latent_shape(), generators(100)
    start, conditioning = normal(generators(0), shape), model.embed(PROMPTS, CPU)
    with torch.no_grad():
        trajectory = CPSSampler(model.sigmas, eta).rollout(
            lambda latents, sigma: model.velocity(latents, sigma, conditioning),
            start,
            step_noise=lambda step: normal(noise, shape),
        )
        return backbone.decode(trajectory.samples).clamp(0, 1), start


def their_images(pipeline, start, eta: float, **call) -> torch.Tensor:
    pipeline.scheduler = CPSScheduler.from_config(pipeline.scheduler.config, eta=eta)
    pipeline.scheduler.generator = generators(100)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt=PROMPTS, latents=start, output_type="pt", **call).images


@pytest.fixture
def sd3(tiny_folder):
    return StableDiffusion3Pipeline.from_pretrained(tiny_folder, text_encoder_3=None, tokenizer_3=None)


@pytest.mark.parametrize("eta", [0.0, 0.9])
@pytest.mark.parametrize("call", [{"num_inference_steps": 4}, {"sigmas": SD3_SIGMAS}], ids=["count", "shifted sigmas"])
def test_the_stock_sd3_pipeline_draws_our_images(eta, call, sd3, tiny_folder):
    """Four steps are the method's, and levels that are shifted already are not shifted again."""
    ours, start = our_images(tiny_backbone(tiny_folder), eta)
    theirs = their_images(sd3, start, eta, guidance_scale=1.0, max_sequence_length=1, **call)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    other = their_images(sd3, start, 0.5, guidance_scale=1.0, max_sequence_length=1, **call)
    assert (other - ours).abs().max() > 1e-3


@pytest.mark.parametrize("shifted", [False, True], ids=["count", "shifted sigmas"])
@pytest.mark.parametrize("call", [{}, {"guidance_scale": 1.0}], ids=["base", "as a student"])
def test_the_stock_flux_pipeline_draws_our_images(call, shifted, tmp_path):
    """Its default hands evenly spaced raw levels over together with mu: those are shifted, once.

    Without a scale both give the base its own guidance input; a student's is 1.
    """
    save_tiny_flux(tmp_path, guidance_embeds=True)
    backbone = FluxBackbone(str(tmp_path), **OPTIONS)
    ours, start = our_images(backbone, 0.9, **call)
    sigmas = {"sigmas": list(backbone.sigmas(METHOD_STEPS)[:-1])} if shifted else {}
    theirs = their_images(
        FluxPipeline.from_pretrained(tmp_path), start, 0.9, num_inference_steps=4, height=32, width=32,
        max_sequence_length=OPTIONS["max_sequence_length"], **sigmas, **call,
    )  # fmt: skip
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_the_stock_flux2_pipeline_draws_our_images(tmp_path):
    save_tiny_flux2(tmp_path, is_distilled=False)
    ours, start = our_images(Flux2Backbone(str(tmp_path), **OPTIONS), 0.9)
    side = int(start.shape[1] ** 0.5)
    theirs = their_images(
        Flux2KleinPipeline.from_pretrained(tmp_path), start.transpose(1, 2).unflatten(2, (side, side)), 0.9,
        num_inference_steps=4, guidance_scale=1.0, height=32, width=32,
        max_sequence_length=OPTIONS["max_sequence_length"],
    )  # fmt: skip
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_image_to_image_starts_in_the_middle_of_the_schedule(sd3):
    """Half strength of four steps: two of them, from the level 0.75 down."""
    pipeline = StableDiffusion3Img2ImgPipeline(**sd3.components)
    pipeline.scheduler = CPSScheduler.from_config(sd3.scheduler.config, eta=0.9)
    pipeline.set_progress_bar_config(disable=True)
    taken = []
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda output, t, sample, **options: (
        taken.append(float(t)),
        step(output, t, sample, **options),
    )[1]
    pipeline(
        PROMPTS[:1], image=torch.rand(1, 3, 32, 32), strength=0.5, num_inference_steps=4, guidance_scale=1.0,
        max_sequence_length=1, output_type="pt",
    )  # fmt: skip
    assert taken == pytest.approx([750, 500])


def scheduler(**options) -> CPSScheduler:
    return CPSScheduler(**{"shift": 3.0} | options)


def test_schedules():
    static, dynamic = scheduler(), scheduler(use_dynamic_shifting=True)
    raw, mu = [1.0, 0.75, 0.5, 0.25], flux_mu(1024)
    static.set_timesteps(4)
    assert static.sigmas.tolist() == pytest.approx([*SD3_SIGMAS, 0])
    assert static.timesteps.tolist() == pytest.approx([1000, 900, 750, 500])
    static.set_timesteps(sigmas=raw)
    assert static.sigmas.tolist() == pytest.approx([*raw, 0])
    expected = dynamic_shift_sigmas([1000, 750, 500, 250], mu=mu)
    for given in ({"num_inference_steps": 4}, {"sigmas": np.linspace(1, 1 / 4, 4)}, {"sigmas": expected}):
        dynamic.set_timesteps(**given, mu=mu)
        assert dynamic.sigmas.tolist() == pytest.approx([*expected, 0])
    static.set_timesteps(
        sigmas=np.linspace(1, 1 / 4, 4), mu=mu
    )  # FLUX.1-schnell: a mu, and a static shift all the same
    assert static.sigmas.tolist() == pytest.approx([*SD3_SIGMAS, 0])


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ({}, "must fall"),
        ({"sigmas": []}, "must fall"),
        ({"sigmas": [1.0, 0.5, 0.0]}, "must fall"),
        ({"sigmas": [0.5, 0.9]}, "must fall"),
        ({"sigmas": [1000, 500]}, "must fall"),
        ({"timesteps": [1000, 500]}, "not timesteps"),
    ],
)
def test_levels_that_are_none_are_refused(call, wanted):
    with pytest.raises(ValueError, match=wanted):
        scheduler().set_timesteps(**call)


def test_a_dynamic_shift_wants_mu():
    with pytest.raises(ValueError, match="wants the pipeline's mu"):
        scheduler(use_dynamic_shifting=True).set_timesteps(4)


@pytest.mark.parametrize(
    "options",
    [
        {"eta": 1.5},
        {"use_karras_sigmas": True},
        {"shift_terminal": 0.1},
        {"stochastic_sampling": True},
        {"time_shift_type": "linear"},
        {"invert_sigmas": True},
    ],
)
def test_what_the_method_does_not_have_is_refused_also_from_another_schedulers_config(options):
    with pytest.raises(ValueError, match=r"eta must lie|schedules of SD3 and FLUX only"):
        scheduler(**options)
    if "eta" not in options:
        config = FlowMatchEulerDiscreteScheduler(**options).config
        with pytest.raises(ValueError, match="schedules of SD3 and FLUX only"):
            CPSScheduler.from_config(config)


def test_it_is_saved_and_read_like_any_scheduler(tmp_path):
    scheduler(eta=0.7, use_dynamic_shifting=True).save_pretrained(tmp_path)
    read = CPSScheduler.from_pretrained(tmp_path)
    assert (read.config.eta, read.config.shift, read.config.use_dynamic_shifting) == (0.7, 3.0, True)
    back = FlowMatchEulerDiscreteScheduler.from_config(read.config)
    assert back.config.shift == 3.0


def test_a_step_is_float32_inside_and_the_models_dtype_outside():
    sample, velocity = torch.randn(2, 3), torch.randn(2, 3).bfloat16()
    one = scheduler(eta=0.0)
    one.set_timesteps(4)
    stepped = one.step(velocity, one.timesteps[0], sample)
    expected = (sample + (0.9 - 1.0) * velocity.float()).bfloat16()
    assert stepped.prev_sample.dtype == torch.bfloat16
    torch.testing.assert_close(stepped.prev_sample, expected)


def test_its_generator_repeats_a_step_and_the_callers_comes_first():
    one = scheduler()

    def step(own, given=None):
        one.set_timesteps(4)
        one.generator = own and torch.Generator().manual_seed(own)
        passed = given and torch.Generator().manual_seed(given)
        return one.step(torch.ones(1, 4), one.timesteps[0], torch.zeros(1, 4), generator=passed, return_dict=False)[0]

    assert torch.equal(step(1), step(1)) and not torch.equal(step(1), step(2))
    assert torch.equal(step(1, given=2), step(2))


def test_importing_the_package_alone_imports_nothing_heavy():
    """Every command does it first. The scheduler itself, imported above from the package, comes with diffusers."""
    code = "import sys, rtdmd_lightning; print({'torch', 'diffusers', 'lightning'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    assert CPSScheduler.__module__ == "rtdmd_lightning.sampling.scheduler"


def test_the_package_has_no_other_names():
    with pytest.raises(ImportError, match="cannot import name 'Scheduler'"):
        from rtdmd_lightning import Scheduler  # noqa: F401
