"""`make demo`: a short cold start on the embedded teacher, then a table and a picture of what it bought.

Interrupted, it goes on where it stopped.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.utils import make_grid, save_image

from rtdmd_lightning import fit
from rtdmd_lightning.command_line import run_command
from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.errors import readable_errors
from rtdmd_lightning.shapes.scoring import in_batches, strict_scores, teacher_images

SEED = 0


def demo(
    config: Path = Path("configs/cold_start/tiny_sd3_demo.yaml"),
    guidance_scale: float = 3.0,
    per_tag: int = 50,
    options: list[str] | None = None,
) -> None:
    """Train (or go on training), then compare with the teacher on held-out prompts.

    Args:
        config: of the cold start.
        guidance_scale: of the teacher's many-step row.
        per_tag: held-out prompts of each of the six tags.
        options: overrides for the run, as on the command line of `rtdmd_lightning.fit`.
    """
    arguments = ["--config", str(config), *(options or [])]
    run = fit.main(arguments, resume=True)
    module, log_dir = run.model, fit.log_folder(run.trainer)
    backbone = module.backbone
    metadata = load_prompts(f"shapes:held_out:{per_tag}")
    prompts = [entry["prompt"] for entry in metadata]

    def teacher(steps: int, scale: float) -> Tensor:
        return teacher_images(
            backbone.pipeline,
            prompts,
            steps=steps,
            guidance_scale=scale,
            max_sequence_length=backbone.max_sequence_length,
            seed=SEED,
        )

    def student() -> Tensor:
        return in_batches(lambda i: module.generate([prompts[j] for j in i], i, seed=SEED), len(prompts))

    rows: dict[str, Callable[[], Tensor]] = {
        f"teacher, 50 steps, CFG {guidance_scale:g}": lambda: teacher(50, guidance_scale),
        "teacher, 4 steps, no CFG": lambda: teacher(4, 1.0),
        "student, 4 steps, no CFG": student,
    }
    images, table = {}, None
    for name, draw in rows.items():
        start = time.perf_counter()
        with module.roles.role("teacher"):  # the pipeline's transformer is the shared base: adapters off
            images[name] = draw()
        seconds = (time.perf_counter() - start) / len(prompts)
        scores = strict_scores(images[name], metadata)
        table = table or new_table(list(scores))
        table.add_row(name, *(f"{score:.2f}" for score in scores.values()), f"{seconds:.4f}")
    picture = log_dir / "demo.png"
    save_side_by_side(list(images.values()), picture, count=12)
    console = Console()
    console.width = max(console.width, 120)  # a log file has no width; the table wants this much
    console.print(table)
    console.print(f"side by side, a column each in the table's order: {picture}")
    console.print(
        f"the result: {log_dir / 'cold_start'}/ ; curves and pictures: make tensorboard (reads {log_dir.parent})"
    )


def new_table(columns: list[str]) -> Table:
    table = Table(title="Strict score on held-out prompts (share of images that are exactly right)")
    table.add_column("", no_wrap=True)
    for column in [*columns, "s/image"]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def save_side_by_side(columns: list[Tensor], path: Path, count: int) -> None:
    """A row per prompt (`count` of them, spread over all), a column per entry, enlarged."""
    spread = torch.linspace(0, len(columns[0]) - 1, count).long()
    tiles = torch.stack([column[spread].cpu() for column in columns], dim=1).flatten(0, 1)
    enlarged = torch.nn.functional.interpolate(tiles, scale_factor=3, mode="nearest")
    save_image(make_grid(enlarged, nrow=2 * len(columns), padding=4, pad_value=1.0), path)


if __name__ == "__main__":
    with readable_errors():
        run_command(demo, "rtdmd_lightning.demo", sys.argv[1:])
