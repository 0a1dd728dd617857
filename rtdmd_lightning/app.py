"""Draw side by side in a browser: the teacher in many steps and in few, and each stage of a stack of adapters.

    rtdmd app                                            the toy world
    rtdmd app --base PATH --adapters STAGE_1 STAGE_2     any base and stack

There is one base in memory. All columns draw the prompt from the same noise, which is that of `rtdmd sample` with this seed.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("app")

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from rtdmd_lightning.models.families import open_backbone
from rtdmd_lightning.playground import toy
from rtdmd_lightning.playground.columns import Columns, Teacher
from rtdmd_lightning.utils.command_line import command_parser
from rtdmd_lightning.utils.errors import readable_errors, require
from rtdmd_lightning.utils.processes import MatmulPrecision, process_device, use_matmul_precision


def app(
    base: str | None = None,
    adapters: Sequence[str] = (),
    steps: int | list[int] | None = None,
    eta: float | None = None,
    teacher_steps: int = 28,
    guidance_scale: float = 3.0,
    resolution: int | None = None,
    backbone: dict[str, Any] | None = None,
    device: str | None = None,
    float32_matmul_precision: MatmulPrecision = "high",
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Serve the page until Ctrl-C. It asks nothing of the network.

    Args:
        base: the base model, a diffusers folder or hub id; by default the toy world's, with both its stages.
        adapters: files or folders in any format; each one gets a column, on top of those before it.
        steps: what the page begins with: how many, or which raw timesteps; by default 4, or those of the toy world.
        eta: what the page begins with: stochasticity of the students' steps; by default 0.9, or 0.7 for the toy world.
        teacher_steps: of the first column, which is the base with guidance.
        guidance_scale: of the first column: of CFG, or the model's guidance input.
        resolution: in pixels; by default that of the base's own pipeline.
        backbone: further arguments of the base's backbone class, as for `rtdmd sample`.
        device: by default an accelerator where there is one.
        float32_matmul_precision: of float32 matrix products on an accelerator; `high` is TF32 where the device has it.
        host: who may connect: 127.0.0.1 is this machine alone, 0.0.0.0 every machine that reaches it (there is no password).
        port: of the page's address.
    """
    require(find_spec("gradio") is not None, "`rtdmd app` wants gradio: pip install 'rtdmd-lightning[app]'")
    from rtdmd_lightning.playground.page import build_page, serve  # late: gradio is an extra

    require("generator_pretrained" not in (backbone or {}), "all columns have one base: give the generator's as --base")
    names, examples, check_prompt = None, ["a photo of a cat"], any_prompt
    if base is None:
        require(not (adapters or resolution or backbone), "--adapters, --resolution and --backbone want a --base")
        base, adapters, resolution, backbone = toy.BASE, toy.ADAPTERS, toy.RESOLUTION, toy.BACKBONE
        steps, eta = toy.STEPS if steps is None else steps, toy.ETA if eta is None else eta
        names, examples, check_prompt = toy.NAMES, toy.examples(), toy.check_prompt
    place = process_device(device)
    use_matmul_precision(float32_matmul_precision, place)
    columns = Columns(
        open_backbone(base, resolution, backbone), adapters, Teacher(teacher_steps, guidance_scale), names
    )
    columns.load(place)
    page = build_page(columns, examples, str(steps or 4), 0.9 if eta is None else eta, check_prompt)
    serve(page, host, port)


def any_prompt(prompt: str) -> None:
    """Refuse an empty prompt. Raises UserError."""
    require(bool(prompt.strip()), "There is no prompt.")


def main(arguments: list[str]) -> None:
    parser = command_parser()
    parser.add_argument("--adapters", nargs="*", type=str, default=[])
    parser.add_function_arguments(app, skip={"adapters"})
    app(**parser.parse_args(arguments).as_dict())


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
