"""A random `CLIPModel` of the real class, saved in the published models' layout, and what the package itself scores with it."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from rtdmd_lightning.shapes.text import build_tokenizer
from tests.support.scorers import to_pil

SIDE, WIDTH, JOINT = 32, 16, 24
PROMPTS = ["a photo of a red circle", "a clear icon of two crosses", "a sketch of a cross left of a square"]


def save_tiny_clip(folder: Path, *, processor: Path | None = None, seed: int = 0) -> Path:
    """Weights are drawn wide enough for different pictures to score differently. `processor` may be another folder."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    shared = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = shared | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 13}
    vision = shared | {"image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            elif name == "logit_scale":
                parameter.fill_(4.0)  # published: log(100)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(processor or folder)
    tokenizer.save_pretrained(processor or folder)
    return folder


def package_logits(folder: Path, images: Tensor, prompts: list[str], processor: Path | None = None) -> Tensor:
    """`[B]` logits the way transformers' users compute them: PIL image, processor, `CLIPModel`."""
    with torch.no_grad():
        output = CLIPModel.from_pretrained(folder, dtype=torch.float32)(**_inputs(processor or folder, images, prompts))
    return output.logits_per_image.diagonal()


def package_image_embeddings(folder: Path, images: Tensor) -> Tensor:
    """`[B, D]` embeddings, not normalised, by the same path."""
    pixels = _inputs(folder, images, PROMPTS)["pixel_values"]
    with torch.no_grad():
        return CLIPModel.from_pretrained(folder, dtype=torch.float32).get_image_features(pixels).pooler_output


def _inputs(processor: Path, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
    pixels = CLIPImageProcessorPil.from_pretrained(processor)([to_pil(image) for image in images], return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(processor)(prompts, padding=True, return_tensors="pt")
    return {**pixels, **tokens}
