"""What an evaluation leaves: a row of `eval.jsonl`, a picture, and both in the run's loggers."""

import json
from collections.abc import Mapping
from pathlib import Path

import lightning as L

from rtdmd_lightning.utils.curve_names import SUMMARY
from rtdmd_lightning.utils.files import appearing_at, write_text
from rtdmd_lightning.utils.json_text import read_rows
from rtdmd_lightning.utils.loggers import log_pictures
from rtdmd_lightning.utils.pictures import Pictures
from rtdmd_lightning.utils.run_folder import run_folder

SCORES = "eval.jsonl"
DIGITS = 5


def write_scores(path: Path, step: int, training_seconds: float, scores: Mapping[str, float]) -> None:
    """A row more, by writing the file anew: a run that is killed leaves no half of one."""
    row = {"step": step, "training_seconds": round(training_seconds, 2)}
    row |= {name: round(score, DIGITS) for name, score in scores.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text("".join(json.dumps(row) + "\n" for row in [*read_rows(path), row]), path)


def write_grid(folder: Path, step: int, pictures: Pictures) -> None:
    """The images with their prompts, as `images/step_N.png` of a run's folder."""
    path = folder / "images" / f"step_{step:06d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_at(path) as partial:
        pictures.grid.save(partial, format="PNG")


def record(
    trainer: L.Trainer,
    training_seconds: float,
    scores: Mapping[str, float],
    headline: Mapping[str, float],
    pictures: Pictures,
) -> None:
    """On the first process. At the number of updates that were done: the same in the files and on the loggers' axis."""
    folder, step = run_folder(trainer), trainer.global_step
    write_scores(folder / SCORES, step, training_seconds, scores)
    write_grid(folder, step, pictures)
    curves = {**scores, **{f"{SUMMARY}{name}": score for name, score in headline.items()}}
    for logger in trainer.loggers:
        logger.log_metrics(curves, step)
        log_pictures(logger, "images", pictures, step)


def evaluated_steps(path: Path) -> set[int]:
    """The steps whose scores an `eval.jsonl` has, if there is one."""
    return {row["step"] for row in read_rows(path)}
