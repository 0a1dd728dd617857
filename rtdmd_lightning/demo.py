"""`make demo`: a short cold start on the toy world and a short stage 2, then a table and a picture of the result.

Interrupted, it goes on where it stopped. A stage whose config or options have changed since is trained anew, and with stage 1 so
is stage 2: its recipe, beside each run in `recipe.json`, includes the cold start that it goes on from.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("demo")

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from torch import Tensor

from rtdmd_lightning import fit
from rtdmd_lightning.data.prompts import load_prompts, spread
from rtdmd_lightning.evaluation.side_by_side import save_side_by_side
from rtdmd_lightning.fitting.command_line import FitCLI
from rtdmd_lightning.modules.preflight import check_unused
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.rewards.base import to_pil
from rtdmd_lightning.roles.drawing import draw
from rtdmd_lightning.sampling.sampler import CPSSampler
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.shapes.scoring import draw_in_batches, strict_scores
from rtdmd_lightning.studies.study import write_json
from rtdmd_lightning.utils.checkpointing import CHECKPOINTS, LAST
from rtdmd_lightning.utils.command_line import run_command, wide_console
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import readable_errors
from rtdmd_lightning.utils.randomness import SampleRandom
from rtdmd_lightning.utils.run_folder import run_folder

SEED = 0


def demo(
    config: Path = Path("configs/cold_start/tiny_sd3_demo.yaml"),
    rtdmd_config: Path = Path("configs/rtdmd/tiny_sd3_demo.yaml"),
    guidance_scale: float = 3.0,
    per_tag: int = 50,
    options: list[str] | None = None,
    rtdmd_options: list[str] | None = None,
) -> None:
    """Train (or go on training) both stages, then compare with the teacher on held-out prompts.

    Args:
        config: of the cold start.
        rtdmd_config: of stage 2, which starts from the cold start's result.
        guidance_scale: of the teacher's many-step row.
        per_tag: held-out prompts of each of the six tags.
        options: overrides for the cold start, as on the command line of `rtdmd_lightning.fit`.
        rtdmd_options: overrides for stage 2.
    """
    metadata = load_prompts(f"shapes:held_out:{per_tag}")  # a wrong number is told before anything is trained
    cold_start = train(config, options or [])
    result = run_folder(cold_start.trainer) / "cold_start"
    rtdmd = train(rtdmd_config, [f"--model.cold_start={result}", *(rtdmd_options or [])])
    prompts = [entry["prompt"] for entry in metadata]
    table, pictures, shown = None, {}, spread(len(prompts), 12)
    for name, images_of in {
        f"teacher, 50 steps, CFG {guidance_scale:g}": lambda: of_teacher(cold_start.model, prompts, 50, guidance_scale),
        "teacher, 4 steps, no CFG": lambda: of_teacher(cold_start.model, prompts, 4, 1.0),
        "cold start, 4 steps, no CFG": lambda: of_student(cold_start.model, prompts),
        "RTDMD, 4 steps, no CFG": lambda: of_student(rtdmd.model, prompts),
    }.items():
        start = time.perf_counter()
        images = images_of()
        seconds = (time.perf_counter() - start) / len(prompts)
        scores = strict_scores(images, metadata)
        pictures[name] = to_pil(images[shown])
        table = table or new_table(list(scores))
        table.add_row(name, *(f"{score:.2f}" for score in scores.values()), f"{seconds:.4f}")
    folder = run_folder(rtdmd.trainer)
    picture = folder / "demo.png"
    save_side_by_side(pictures, [prompts[index] for index in shown], picture)
    console = wide_console(130)
    console.print(table)
    console.print(f"side by side: {picture}")
    console.print(
        f"the results: {result}/, {folder / 'rtdmd'}/ ; curves and pictures: make tensorboard (reads {folder.parent})"
    )


def train(config: Path, options: list[str]) -> FitCLI:
    """Train a stage, or go on with it where its folder holds a run of the same recipe; one of another is deleted."""
    arguments = ["--config", str(config), *options]
    run = fit.parse(arguments)
    folder = run_folder(run.trainer)
    recipe = {"config": compose(config), "options": options, "origin": run.model.origin()}
    record, last = folder / "recipe.json", folder / CHECKPOINTS / LAST
    if record.is_file():
        same = json.loads(record.read_text()) == recipe
        if same and last.is_file():
            return fit.main([*arguments, f"--ckpt_path={last}"])
        why = (
            "was stopped before its first checkpoint"
            if same
            else "had another config, other options or another cold start"
        )
        print(f"{folder} {why}: it is trained anew", flush=True)
        shutil.rmtree(folder)
    check_unused(folder)  # a run that is not the demo's is never deleted
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, recipe)
    return fit.main(arguments)


def of_teacher(module: FewStepModule, prompts: list[str], steps: int, guidance_scale: float) -> Tensor:
    """By the Euler sampler, at the levels of the family's own pipeline."""
    sampler = CPSSampler(module.backbone.pipeline_sigmas(steps), eta=0.0)
    empty = module.embed([""], module.device)

    def velocity(latents: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        return module.roles.teacher_velocity(latents, sigma, conditioning, empty, guidance_scale)

    def images(indices: Sequence[int]) -> Tensor:
        conditioning = module.embed([prompts[index] for index in indices], module.device)
        random = SampleRandom(SEED, indices, module.device)
        return draw(module.backbone, sampler, velocity, conditioning, random)

    return draw_in_batches(images, len(prompts))


def of_student(module: FewStepModule, prompts: list[str]) -> Tensor:
    return draw_in_batches(lambda i: module.generate([prompts[j] for j in i], i, seed=SEED), len(prompts))


def new_table(columns: list[str]) -> Table:
    table = Table(title="Strict score on held-out prompts (share of images that are exactly right)")
    table.add_column("", no_wrap=True)
    for column in [*columns, "s/image"]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    with readable_errors():
        run_command(demo, sys.argv[1:])
