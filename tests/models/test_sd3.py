"""The SD3 backbone against diffusers' own pipeline, and the input it refuses."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.roles import teacher_velocity
from tests.support.tiny import tiny_backbone, tiny_module


@pytest.mark.parametrize("sampler", [SamplerSettings(eta=0.0), SamplerSettings(eta=0.9, draw_eta=0.0)])
def test_sampling_with_eta_zero_is_the_pipeline_with_the_same_sigmas(sampler, tiny_folder):
    module = tiny_module(tiny_folder, sampler=sampler)
    prompts = ["a photo of a red circle", "a photo of two crosses"]
    latents = SampleRandom(5, [0, 1], torch.device("cpu")).normal("start", module.backbone.latent_shape())
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_folder, text_encoder_3=None, tokenizer_3=None)
    # diffusers shifts the sigmas that it is handed; raw ones become ours.
    theirs = pipeline(
        prompts,
        latents=latents,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=1,
        output_type="pt",
    ).images
    assert pipeline.scheduler.sigmas.tolist() == pytest.approx(module.sampler.sigmas)
    ours = module.generate(prompts, [0, 1], seed=5, role="teacher")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_guidance_is_the_pipelines(tiny_folder):
    """One Euler step from pure noise with CFG, against the pipeline."""
    module = tiny_module(tiny_folder)
    prompts = ["a photo of a red circle"]
    latents = torch.randn(1, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_folder, text_encoder_3=None, tokenizer_3=None)
    theirs = pipeline(
        prompts, latents=latents, sigmas=[1.0], guidance_scale=4.5, max_sequence_length=1, output_type="latent"
    ).images
    velocity = teacher_velocity(module, latents, 1.0, module.embed(prompts, torch.device("cpu")), 4.5)
    torch.testing.assert_close(latents - velocity, theirs, rtol=1e-4, atol=1e-4)


def test_a_float32_vae_is_read_as_it_is_beside_a_bfloat16_transformer(tiny_folder):
    """Bit for bit: it never was bfloat16."""
    backbone = tiny_backbone(tiny_folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in backbone.load().parameters()} == {torch.bfloat16}
    vae, on_disk = backbone.loaded.vae.state_dict(), load_file(tiny_folder / "vae/diffusion_pytorch_model.safetensors")
    assert vae.keys() == on_disk.keys()
    for key, value in on_disk.items():
        assert vae[key].dtype == torch.float32 and torch.equal(vae[key], value), key
    assert any((value != value.bfloat16().float()).any() for value in on_disk.values())
    assert {p.dtype for p in backbone.loaded.text_encoder.parameters()} == {torch.bfloat16}
    other = tiny_backbone(tiny_folder, vae_dtype="bfloat16")
    other.load()
    assert other.loaded.vae.dtype == torch.bfloat16 and other.loaded.transformer.dtype == torch.float32


def test_decode_passes_gradients_to_the_latents(tiny_folder):
    module = tiny_module(tiny_folder)
    latents = torch.randn(1, *module.backbone.latent_shape(), requires_grad=True)
    module.backbone.decode(latents).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0


def broken_copy(folder, tmp_path, part):
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / part)
    return copy


def test_a_folder_that_lacks_a_part_is_refused_by_name(tiny_folder, tmp_path):
    with pytest.raises(UserError, match="lacks vae"):
        tiny_backbone(broken_copy(tiny_folder, tmp_path, "vae")).load()
    with pytest.raises(UserError, match=r"no model_index\.json"):
        tiny_backbone(tmp_path).load()


def test_an_index_without_a_part_is_refused_by_name(tiny_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    del index["tokenizer_2"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="lacks tokenizer_2"):
        tiny_backbone(copy).load()


@pytest.mark.parametrize("resolution", [0, 30, 36, 128])
def test_a_resolution_that_the_vae_cannot_represent_is_refused(tiny_folder, resolution):
    with pytest.raises(UserError, match=f"resolution {resolution} cannot be represented"):
        tiny_backbone(tiny_folder, resolution=resolution).load()


def test_dynamic_shift_is_not_mistaken_for_a_static_one(tiny_folder, tmp_path):
    copy = tmp_path / "dynamic"
    shutil.copytree(tiny_folder, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dynamic_shifting": True}))
    with pytest.raises(UserError, match="use_dynamic_shifting"):
        tiny_backbone(copy).load()
