"""Weights of SD3, FLUX.1 and FLUX.2 in the layout of the models' own repositories, as diffusers' converters take them.

The rows are real, as the layout is about rows; all matrices have `COLUMNS` columns, so that FLUX.1's 3072 rows are cheap (its
converter knows no other width).
"""

import torch
from torch import Tensor

COLUMNS = 2
FLUX1_WIDTH, FLUX2_WIDTH = 3072, 16


def sd3_weights(depth: int) -> dict[str, Tensor]:
    """As SD3.5 Medium has it: the first block has a second attention, the last block's text goes no further."""
    width = 64 * depth
    embedders = ["x_embedder.proj", "context_embedder"]
    embedders += [f"{name}_embedder.mlp.{layer}" for name in "ty" for layer in (0, 2)]
    rows = dict.fromkeys(embedders, width) | {"final_layer.linear": 4, "final_layer.adaLN_modulation.1": 2 * width}
    for block in range(depth):
        last = block == depth - 1
        for stream in ("x_block", "context_block"):
            name = f"joint_blocks.{block}.{stream}"
            rows |= {f"{name}.attn.qkv": 3 * width, f"{name}.adaLN_modulation.1": 2 * width}
            if stream == "x_block" or not last:
                rows |= {f"{name}.attn.proj": width, f"{name}.mlp.fc1": 4 * width, f"{name}.mlp.fc2": width}
    rows |= {"joint_blocks.0.x_block.attn2.qkv": 3 * width, "joint_blocks.0.x_block.attn2.proj": width}
    return {"pos_embed": torch.randn(1, 4, COLUMNS)} | _linear(rows)


def flux1_weights() -> dict[str, Tensor]:
    width = FLUX1_WIDTH
    embedders = [f"{name}_in.{layer}_layer" for name in ("time", "vector", "guidance") for layer in ("in", "out")]
    rows = dict.fromkeys([*embedders, "txt_in", "img_in"], width)
    for stream in ("img", "txt"):
        name = f"double_blocks.0.{stream}"
        rows |= {f"{name}_mod.lin": 6 * width, f"{name}_attn.qkv": 3 * width, f"{name}_attn.proj": width}
        rows |= {f"{name}_mlp.0": 4 * width, f"{name}_mlp.2": width}
    name = "single_blocks.0"
    rows |= {f"{name}.modulation.lin": 3 * width, f"{name}.linear1": 7 * width, f"{name}.linear2": width}
    rows |= {"final_layer.linear": 4, "final_layer.adaLN_modulation.1": 2 * width}
    return _linear(rows) | _flux_norms()


def flux2_weights() -> dict[str, Tensor]:
    width = FLUX2_WIDTH
    rows = dict.fromkeys(["img_in", "txt_in", "time_in.in_layer", "time_in.out_layer"], width)
    for stream in ("img", "txt"):
        name = f"double_blocks.0.{stream}"
        rows |= {f"{name}_attn.qkv": 3 * width, f"{name}_attn.proj": width}
        rows |= {f"{name}_mlp.0": 6 * width, f"{name}_mlp.2": width}
    rows |= {"single_blocks.0.linear1": 9 * width, "single_blocks.0.linear2": width, "final_layer.linear": 4}
    return _linear(rows) | _flux_norms()


def _linear(rows: dict[str, int]) -> dict[str, Tensor]:
    weights = {f"{name}.weight": torch.randn(count, COLUMNS) for name, count in rows.items()}
    return weights | {f"{name}.bias": torch.randn(count) for name, count in rows.items()}


def _flux_norms() -> dict[str, Tensor]:
    blocks = ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0")
    return {f"{block}.norm.{half}_norm.scale": torch.randn(8) for block in blocks for half in ("query", "key")}
