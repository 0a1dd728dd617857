"""Tiny random pipelines of the FLUX families, from the real classes (`tests/support/tiny.py` has SD3's)."""

import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from rtdmd_lightning.models import Backbone, Flux2Backbone, FluxBackbone
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.pretraining.vae import build_vae
from rtdmd_lightning.roles.lora import LoraSettings, adapter_parameters
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.shapes.text import ENCODER_WIDTH, build_text_encoder, build_tokenizer

RESOLUTION, TEXT_TOKENS = 32, 64  # 4x4 image tokens; a prompt of the shapes world, letter by letter, fits
OPTIONS = {"resolution": RESOLUTION, "max_sequence_length": TEXT_TOKENS, "dtype": "float32"}
QWEN3_WIDTH, QWEN3_LAYERS = 8, 27  # FLUX.2 reads the hidden states after layers 9, 18 and 27
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_flux(folder: Path, *, guidance_embeds: bool) -> None:
    torch.manual_seed(0)
    vae = build_vae(channels=(8, 8, 8), norm_num_groups=4)
    vae.register_to_config(shift_factor=0.1, scaling_factor=1.5)
    tokenizer = build_tokenizer()
    clip = CLIPTextModel(build_text_encoder(tokenizer).config)
    letters = [(letter, -3.0) for letter in string.ascii_lowercase]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer_2 = T5Tokenizer(vocab=specials + letters, extra_ids=0)
    t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=ENCODER_WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    strengthen_attention(transformer)
    FluxPipeline(dynamic_scheduler(), vae, clip, tokenizer, t5, tokenizer_2, transformer).save_pretrained(folder)


def save_tiny_flux2(folder: Path, *, is_distilled: bool) -> None:
    """The distilled one differs from the base in its transformer's weights only, as the published ones do."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    tokenizer = build_qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=QWEN3_WIDTH,
        intermediate_size=16,
        num_hidden_layers=QWEN3_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
    )
    text_encoder = Qwen3ForCausalLM(config)
    torch.manual_seed(int(is_distilled))
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * QWEN3_WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    strengthen_attention(transformer)
    parts = dynamic_scheduler(), vae, text_encoder, tokenizer, transformer
    Flux2KleinPipeline(*parts, is_distilled=is_distilled).save_pretrained(folder)


def strengthen_attention(transformer: torch.nn.Module) -> None:
    """Freshly initialised, the prompt hardly reaches the image tokens: a mistake in it would drown in the tolerances."""
    for path, parameter in transformer.named_parameters():
        if ".attn." in path:
            parameter.data *= 3


def dynamic_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def build_qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes only, no merges."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_all(folder: Path) -> dict[str, Path]:
    """Every tiny pipeline of this file, by name."""
    save_tiny_flux(folder / "flux", guidance_embeds=True)
    save_tiny_flux(folder / "flux_free", guidance_embeds=False)
    save_tiny_flux2(folder / "flux2", is_distilled=False)
    save_tiny_flux2(folder / "flux2_distilled", is_distilled=True)
    return {name: folder / name for name in ("flux", "flux_free", "flux2", "flux2_distilled")}


def tiny_backbones(folders: dict[str, Path], **options) -> dict[str, Backbone]:
    """`flux` takes guidance, `flux_free` does not; `flux2_two_bases` has a generator base of its own."""
    settings = OPTIONS | options
    return {
        "flux": FluxBackbone(str(folders["flux"]), **settings),
        "flux_free": FluxBackbone(str(folders["flux_free"]), **settings),
        "flux2": Flux2Backbone(str(folders["flux2"]), **settings),
        "flux2_two_bases": Flux2Backbone(
            str(folders["flux2"]), generator_pretrained=str(folders["flux2_distilled"]), **settings
        ),
    }


def family_config(folders: dict[str, Path], name: str) -> dict:
    """One of `tiny_backbones` as it stands in a config."""
    backbone = tiny_backbones(folders)[name]
    options = {"pretrained": backbone.pretrained} | OPTIONS
    if name == "flux2_two_bases":
        options["generator_pretrained"] = backbone.generator_pretrained
    return {"class_path": f"rtdmd_lightning.models.{type(backbone).__name__}", "init_args": options}


def module_of(backbone: Backbone, *, move_adapters: bool = True, **options) -> ACDMDModule:
    """A configured module, by default with its adapters moved off zero so that the roles differ."""
    settings = {"batch_size": 2, "guidance_scale": (3.0, 3.0), "lora": LoraSettings(rank=4, alpha=8)}
    module = ACDMDModule(backbone, **settings | options)
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    for adapter in (GENERATOR, FAKE_SCORE, EMA) if move_adapters else ():
        for path, parameter in adapter_parameters(module.roles.base_of(adapter), adapter).items():
            if "lora_B" in path:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module
