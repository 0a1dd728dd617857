"""What ComfyUI does with a LoRA file, and with a step of its ancestral sampler: written anew from the facts in its public code.

The files of Comfy-Org/ComfyUI that were read: `comfy/lora.py` (commit 17358c8), `comfy/utils.py` (09708ea),
`comfy/weight_adapter/lora.py` (0323d87), `comfy/k_diffusion/sampling.py`, `comfy/samplers.py` (311c014) and
`comfy/model_sampling.py` (2fd2083). What they say:

* a layer's matrices are `transformer.LAYER.lora_A.weight` and `lora_B.weight`; metadata is not asked for a scale;
* the scale is alpha / rank where the file has `transformer.LAYER.alpha`, else 1;
* weights have the layout of the models' own repositories: q, k and v are rows of one matrix, in FLUX's single blocks with the
  MLP's rows after them. SD3's width is 64 times its number of blocks.
"""

import re
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]
Place = tuple[str, int | None, int | None]
"""A weight of the original layout, and the rows of it: the first one and how many; None is all."""

IN_A_JOINT_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
IN_A_DOUBLE_BLOCK = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
IN_A_SINGLE_BLOCK = {"proj_out": "linear2", "attn.to_out": "linear2", "attn.to_qkv_mlp_proj": "linear1"}
HEAD = re.compile(r"attn\.(?:to_(?P<image>[qkv])|add_(?P<text>[qkv])_proj)")


def place_in_sd3(layer: str, depth: int) -> Place:
    """Raises KeyError for a layer that ComfyUI would not load; so do the others."""
    _, block, rest = layer.split(".", 2)
    if head := HEAD.fullmatch(rest):
        stream = "x_block" if head["image"] else "context_block"
        return f"joint_blocks.{block}.{stream}.attn.qkv.weight", *_rows(head, 64 * depth)
    return f"joint_blocks.{block}.{IN_A_JOINT_BLOCK[rest]}.weight", None, None


def place_in_flux(layer: str, width: int) -> Place:
    kind, block, rest = layer.split(".", 2)
    head = HEAD.fullmatch(rest)
    if kind == "transformer_blocks":
        if head:
            stream = "img_attn" if head["image"] else "txt_attn"
            return f"double_blocks.{block}.{stream}.qkv.weight", *_rows(head, width)
        return f"double_blocks.{block}.{IN_A_DOUBLE_BLOCK[rest]}.weight", None, None
    if head:
        return f"single_blocks.{block}.linear1.weight", *_rows(head, width)
    if rest == "proj_mlp":
        return f"single_blocks.{block}.linear1.weight", 3 * width, 4 * width
    return f"single_blocks.{block}.{IN_A_SINGLE_BLOCK[rest]}.weight", None, None


def apply(weights: Weights, file: Path, place: Callable[[str], Place]) -> tuple[Weights, set[str]]:
    """The patched weights, and the file's keys that went nowhere ("lora key not loaded")."""
    lora, patched = load_file(file), {name: weight.clone() for name, weight in weights.items()}
    read = set()
    for key in [key for key in lora if key.endswith(".lora_B.weight")]:
        stem = key.removesuffix(".lora_B.weight")
        up, down, alpha = lora[key], lora[f"{stem}.lora_A.weight"], lora.get(f"{stem}.alpha")
        name, first, rows = place(stem.removeprefix("transformer."))
        part = patched[name] if first is None else patched[name].narrow(0, first, rows)
        part += (1.0 if alpha is None else alpha.item() / len(down)) * (up.float() @ down.float())
        read |= {key, f"{stem}.lora_A.weight"} | ({f"{stem}.alpha"} & lora.keys())
    return patched, lora.keys() - read


def simple_schedule(steps: int, shift: float) -> list[float]:
    """The scheduler `simple` on a model of 1000 shifted levels, without the final 0."""
    levels = [shift * t / (1 + (shift - 1) * t) for t in (step / 1000 for step in range(1, 1001))]
    return [levels[-1 - int(step * 1000 / steps)] for step in range(steps)]


def ancestral_step(x: Tensor, clean: Tensor, sigma: float, sigma_next: float, noise: Tensor) -> Tensor:
    """A step of `euler_ancestral` (its eta is 1) in a flow model, not to 0: down below the next level, and up again."""
    down = sigma_next * sigma_next / sigma
    shrink = (1 - sigma_next) / (1 - down)
    at_down = down / sigma * x + (1 - down / sigma) * clean
    return shrink * at_down + (sigma_next**2 - (shrink * down) ** 2) ** 0.5 * noise


def _rows(head: re.Match[str], width: int) -> tuple[int, int]:
    return width * "qkv".index(head["image"] or head["text"]), width
