"""Adapters from any format to any other, several of them as one, or merged into their base.

    rtdmd convert --adapters cold_start/generator_ema.pt rtdmd/generator_ema.pt \\
        --base stabilityai/stable-diffusion-3.5-medium --to diffusers --out my_adapter

Several adapters are taken as a stack, in order (METHOD section 5): the result is one adapter whose rank is the sum of theirs.

    rtdmd convert --inspect cold_start/generator_ema.pt

prints what a file is, and writes nothing.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("convert")

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from rtdmd_lightning import roles as lora
from rtdmd_lightning.models.families import family_of, load_transformer, skeleton
from rtdmd_lightning.roles import writing
from rtdmd_lightning.roles.adapter import METHOD_SCALE
from rtdmd_lightning.roles.inspection import report
from rtdmd_lightning.roles.reading import EMA, read_all
from rtdmd_lightning.utils.command_line import command_parser, run_command, wide_console
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.files import check_output


def convert(
    adapters: Sequence[str],
    base: str,
    to: Literal["published", "peft", "diffusers", "merged"],
    out: Path,
    role: str = EMA,
    alpha: float | None = None,
    merged_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Path:
    """Read, check against the base, stack and write; returns the file that a reader looks for.

    Args:
        adapters: published `.pt` files, `.ckpt` checkpoints, PEFT folders, the authors' `checkpoint-N` folders or diffusers
            `.safetensors` files.
        base: the diffusers folder or hub id that they were trained on; only its configuration is read, unless to merge.
        to: a published state dict (alpha is 2 x rank), a PEFT folder, a diffusers LoRA file (B has the scale folded in, so that
            ComfyUI reads it too), or a whole transformer with the adapters merged in.
        out: the folder to write into.
        role: which adapter of a checkpoint.
        alpha: of every file read: checked where a file holds its alpha, used where it does not (instead of 2 x rank).
        merged_dtype: of the merged transformer; bfloat16 is half the size and rounds the updates.
    """
    if not adapters:
        raise UserError("--adapters wants at least one file or folder")
    check_output(out, "--out")
    bare = skeleton(base)
    read = [lora.read(path, role=role, alpha=alpha) for path in adapters]
    for adapter in read:
        lora.check_fit(adapter, bare)
    whole = lora.stack(read)
    if to == "merged":
        transformer = load_transformer(base, getattr(torch, merged_dtype))
        lora.merge(transformer, whole)
        return writing.write_merged(transformer, out)
    if to == "published":
        return writing.write_published(whole.with_scale(METHOD_SCALE), out)  # what readers elsewhere take it for
    if to == "peft":
        return writing.write_peft(whole, out, base)
    written = writing.write_diffusers(whole, out, family_of(base).pipeline_class)
    writing.check_diffusers_reads_all(whole, out, bare)
    return written


def inspect(inspect: str, base: str | None = None) -> bool:
    """Print what an adapter file is: its format, the model that its keys match, rank, alpha, and numbers by kind of layer.

    The command exits with status 1 where its keys match no known model, and with 2 where it is no adapter at all.

    Args:
        inspect: a file or folder in any of the formats; of a checkpoint every role is printed.
        base: the diffusers folder or hub id to compare with, instead of the published models; only its configuration is read.
    """
    console = wide_console()
    fits = [report(file, base, console) for file in read_all(inspect)]
    return all(fits)


def main(arguments: list[str]) -> None:
    """The command. With `--inspect` it exits with status 1 where a file matches no known model."""
    if any(argument.partition("=")[0] == "--inspect" for argument in arguments):
        if not run_command(inspect, arguments):
            sys.exit(1)
        return
    parser = command_parser()
    parser.add_argument("--adapters", nargs="+", type=str, required=True)
    parser.add_function_arguments(convert, skip={"adapters"})
    written = convert(**parser.parse_args(arguments).as_dict())
    print(f"written: {written}")


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
