"""Compare models: `rtdmd evaluate --config configs/evaluate/tiny_sd3.yaml [--output=… --trainer.…]`.

Every entry (a base, adapters, a sampler) draws every prompt set from noise that belongs to seed and prompt; the set's rewards
score the images. Into the output folder go `images/`, `results.json`, `results.md`, `report.html` and, of every set, a picture
`side_by_side_SET.png`. Images that are there are not drawn again. `--entries.NAME.steps=8` and the like override the config,
`--resolution=512` the resolution of all entries; `--help` lists every option.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("evaluate")

import gc
import sys
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning import Trainer

from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.evaluation.predict import DrawImages, ScoreImages
from rtdmd_lightning.evaluation.published import published_scores
from rtdmd_lightning.evaluation.report import Provenance, write_report
from rtdmd_lightning.evaluation.results import Results, SetResult, write_results
from rtdmd_lightning.evaluation.settings import Entry, Gallery, PromptSet, check_settings
from rtdmd_lightning.evaluation.side_by_side import write_side_by_side
from rtdmd_lightning.evaluation.tables import to_markdown
from rtdmd_lightning.evaluation.tasks import ImageTask, in_batches, settings_digest, tasks_of
from rtdmd_lightning.evaluation.terminal import to_terminal
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.utils.command_line import command_parser, wide_console
from rtdmd_lightning.utils.configuration import expand_config_arguments, refusals_of_libraries
from rtdmd_lightning.utils.errors import readable_errors
from rtdmd_lightning.utils.files import check_output, slug, write_text
from rtdmd_lightning.utils.processes import MatmulPrecision, closing_process_group, use_matmul_precision

Images = dict[str, dict[str, list[ImageTask]]]
"""By entry and prompt set."""


@dataclass(frozen=True)
class Evaluation:
    """What to compare, on what, and where to write it.

    Args:
        entries: by the names they have in the tables.
        sets: prompt sets with their rewards, by name.
        baseline: the entry that the others are compared with.
        output: the folder that everything is written into.
        batch_size: images drawn, or scored, at once on each process.
        gallery: how many images the report shows, and how large.
    """

    entries: dict[str, Entry]
    sets: dict[str, PromptSet]
    baseline: str
    output: Path
    batch_size: PositiveInt = 16  # type: ignore[valid-type]
    gallery: Gallery = field(default_factory=Gallery)

    def __post_init__(self) -> None:
        check_settings(self.entries, self.sets, self.baseline)
        check_output(self.output, "--output")


def parse(arguments: list[str]) -> tuple[Evaluation, Trainer, dict[str, Any]]:
    """The evaluation and the trainer that a command line describes, and the whole config with all defaults.

    An entry without a guidance scale has the one that it is drawn with.
    """
    parser = command_parser()
    parser.add_argument("--config", action="config", help="YAML file; several are merged, the last one wins")
    parser.add_argument("--resolution", type=PositiveInt, help="pixels a side, in place of every backbone's own")
    products = "of float32 matrix products on an accelerator: 'high' is TF32 where the device has it"
    parser.add_argument("--float32_matmul_precision", type=MatmulPrecision, default="high", help=products)
    parser.add_class_arguments(Evaluation)
    parser.add_class_arguments(Trainer, "trainer")
    parser.set_defaults({"trainer.use_distributed_sampler": False})
    expanded = expand_config_arguments(arguments)
    with refusals_of_libraries():
        config = parser.parse_args(expanded)
        if config.resolution is not None:
            for entry in config.entries.values():
                entry.backbone.init_args.resolution = config.resolution
        made = parser.instantiate(config)
    use_matmul_precision(config.float32_matmul_precision, made.trainer.strategy.root_device)
    evaluation = Evaluation(**{option.name: made[option.name] for option in fields(Evaluation)})
    whole = config.clone().as_dict()
    for name, entry in evaluation.entries.items():
        whole["entries"][name]["guidance_scale"] = entry.model().guidance_scale
    return evaluation, made.trainer, whole


def wanted_images(evaluation: Evaluation, entries: dict[str, Any]) -> Images:
    """Every image that the evaluation wants; `entries` are their settings as in the config."""
    prompts = {
        name: load_prompts(prompt_set.prompts) * prompt_set.images_per_prompt
        for name, prompt_set in evaluation.sets.items()
    }
    folder = evaluation.output / "images"
    return {name: tasks_of(folder, name, settings_digest(entries[name]), prompts) for name in evaluation.entries}


def draw(evaluation: Evaluation, images: Images, trainer: Trainer) -> None:
    """Draw the images that are missing, one entry after the other."""
    for name, entry in evaluation.entries.items():
        tasks = [task for of_set in images[name].values() for task in of_set]
        batches = in_batches(tasks, evaluation.batch_size)
        trainer.predict(DrawImages(f"drawing {name}", batches, entry.model(), entry.seed), return_predictions=False)
        gc.collect()  # the next model wants the memory
    trainer.strategy.barrier()  # a process scores images that others have drawn


def score(
    evaluation: Evaluation, reward: Reward, name: str, images: Images, trainer: Trainer
) -> dict[str, list[float]]:
    """One reward's scores of the images of one prompt set, by entry; the same on every process."""
    tasks = {entry: images[entry][name] for entry in images}
    # A batch never spans two entries: their images may differ in size.
    batches = [batch for of_entry in tasks.values() for batch in in_batches(of_entry, evaluation.batch_size)]
    module = ScoreImages(f"{name}: {reward.name}", batches, reward)
    trainer.predict(module, return_predictions=False)
    gc.collect()
    scores = iter(module.table.to(trainer.strategy.root_device).compute().tolist())
    return {entry: [next(scores) for _ in of_entry] for entry, of_entry in tasks.items()}


def collect(evaluation: Evaluation, name: str, images: Images, trainer: Trainer, settings: dict[str, Any]) -> SetResult:
    """Score one prompt set with all its rewards; `settings` are the whole config."""
    prompt_set = evaluation.sets[name]
    by_reward = {reward.name: score(evaluation, reward, name, images, trainer) for reward in prompt_set.rewards}
    metadata = [task.metadata for task in next(iter(images.values()))[name]]
    metadata = metadata[: len(metadata) // prompt_set.images_per_prompt]
    published = {
        entry: published_scores(settings["entries"][entry], name, len(metadata), by_reward.keys()) for entry in images
    }
    return SetResult(
        source=prompt_set.prompts,
        metadata=metadata,
        files={
            entry: [task.path.relative_to(evaluation.output) for task in of_set[name]]
            for entry, of_set in images.items()
        },
        scores={entry: {reward: scores[entry] for reward, scores in by_reward.items()} for entry in images},
        reward_settings=dict(zip(by_reward, settings["sets"][name]["rewards"], strict=True)),
        published={entry: scores for entry, scores in published.items() if scores},
    )


def main(arguments: list[str]) -> Results:
    """Draw, score, write and print."""
    evaluation, trainer, settings = parse(arguments)
    images = wanted_images(evaluation, settings["entries"])
    draw(evaluation, images, trainer)
    sets = {name: collect(evaluation, name, images, trainer, settings) for name in evaluation.sets}
    results = Results(settings["entries"], evaluation.baseline, sets)
    if trainer.is_global_zero:
        write_results(results, evaluation.output / "results.json")
        write_text(to_markdown(results), evaluation.output / "results.md")
        for name, result in sets.items():
            picture = evaluation.output / f"side_by_side_{slug(name)}.png"
            write_side_by_side(result, evaluation.output, evaluation.gallery, picture, evaluation.sets[name].verdict)
        provenance = Provenance.of_command(arguments, datetime.now().astimezone())
        report = write_report(results, evaluation.output, evaluation.gallery, provenance)
        console = wide_console()
        for part in to_terminal(results):
            console.print(part)
        console.print(f"\nthe images side by side: {report}", highlight=False, soft_wrap=True)
    return results


if __name__ == "__main__":
    with readable_errors(), closing_process_group():
        main(sys.argv[1:])
