"""The committed teacher, `checkpoints/tiny-sd3`: stock classes, a stock call, and the quality that the rest builds on."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torchvision.transforms.functional import to_tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from rtdmd_lightning.geneval.vocabulary import TAGS
from rtdmd_lightning.pretraining.vae import encode_all
from rtdmd_lightning.shapes.dataset import sample_pairs
from rtdmd_lightning.shapes.prompts import held_out_prompts, prompts
from rtdmd_lightning.shapes.render import render_batch
from rtdmd_lightning.shapes.scoring import strict_scores, teacher_images
from rtdmd_lightning.shapes.world import IMAGE_SIZE, sample_scene
from tests.support.tiny import REPOSITORY

FOLDER = REPOSITORY / "checkpoints" / "tiny-sd3"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    """As a stranger loads it, without any option."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 20e6


def test_the_parts_are_of_the_real_classes(pipeline):
    classes = {
        "vae": AutoencoderKL,
        "transformer": SD3Transformer2DModel,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    assert {name: type(pipeline.components[name]) for name in classes} == classes
    assert pipeline.scheduler.config.shift == 3
    assert not pipeline.scheduler.config.use_dynamic_shifting


def test_its_tokenizers_know_every_word(pipeline):
    """One token a word, the same in both slots, and no prompt is cut off."""
    texts = [entry["prompt"] for tag in TAGS for entry in prompts(tag)]
    words = sorted({word for text in texts for word in text.split()})
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        assert {len(ids) for ids in tokenizer(words).input_ids} == {3}  # with the start and the end
        assert max(len(ids) for ids in tokenizer(texts[::50]).input_ids) <= tokenizer.model_max_length
    assert pipeline.tokenizer.get_vocab() == pipeline.tokenizer_2.get_vocab()


def test_a_stock_call_draws_what_the_prompts_say(pipeline):
    """Nothing but prompts, fewer steps and a seed: diffusers' own guidance, size, and 256 T5 tokens, which are zeros."""
    metadata = held_out_prompts(1)
    drawn = pipeline(
        [entry["prompt"] for entry in metadata], num_inference_steps=8, generator=torch.Generator().manual_seed(2)
    ).images
    assert {image.size for image in drawn} == {(IMAGE_SIZE, IMAGE_SIZE)}
    assert strict_scores(torch.stack([to_tensor(image) for image in drawn]), metadata)["all"] >= 5 / 6


@torch.no_grad()
def test_the_autoencoder_is_not_the_ceiling(pipeline):
    """Reconstructions of true pictures of 300 held-out prompts are right, as the pictures are, and hardly differ from them."""
    metadata, rng = held_out_prompts(50), np.random.default_rng(1)
    pixels = 2 * render_batch([sample_scene(entry, rng, allow_unseen=True) for entry in metadata]) - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mean
    reconstructed = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert strict_scores(reconstructed, metadata)["all"] >= 0.985
    error = torch.nn.functional.mse_loss(2 * reconstructed - 1, pixels)
    assert 10 * torch.log10(4 / error) > 30  # dB


def test_latents_of_training_pictures_have_mean_zero_and_deviation_one(pipeline):
    """After the shift and the scale that the folder records, on pictures that it was not trained on."""
    images, _ = sample_pairs(200, seed=1)
    config = pipeline.vae.config
    latents = (encode_all(pipeline.vae, images) - config.shift_factor) * config.scaling_factor
    assert latents.mean().abs() < 0.03
    assert abs(latents.std() - 1) < 0.03


@pytest.mark.slow
def test_the_gap_that_distillation_closes(pipeline):
    """28 steps with CFG are right at least four times out of five; 4 steps without are at most three quarters as good."""
    metadata = held_out_prompts(6)
    many, few = (
        strict_scores(
            teacher_images(
                pipeline,
                [entry["prompt"] for entry in metadata],
                steps=steps,
                guidance_scale=guidance_scale,
                max_sequence_length=1,
                seed=3,
            ),
            metadata,
        )["all"]
        for steps, guidance_scale in ((28, 3.0), (4, 1.0))
    )
    assert many >= 0.8
    assert few <= 0.75 * many
