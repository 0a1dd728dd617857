"""What of a run's folder is published: its recipe and its last scores."""

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from rtdmd_lightning.utils.curve_names import OF_EVALUATIONS
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.json_text import read_rows
from rtdmd_lightning.utils.yaml_text import read_yaml

OF_THE_BACKBONE = ("pretrained", "resolution", "max_sequence_length")
NEEDED = (("sampler", "steps"), *(("backbone", "init_args", name) for name in OF_THE_BACKBONE))
"""Options of the module that a model card tells."""


def recipe_of(run: Path) -> dict[str, Any]:
    """What of a run's configuration is its recipe: the trainer's part is about one machine.

    Raises UserError for a folder that no run wrote.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"the run {run} has no config.yaml; give the log folder that training wrote")
    config = read_yaml(path)
    try:
        recipe = {
            "seed_everything": config["seed_everything"],
            "max_steps": config["trainer"]["max_steps"],
            "model": config["model"],
            "data": config["data"],
        }
        for option in NEEDED:
            reduce(getitem, option, config["model"]["init_args"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not the config.yaml that a training run writes: it lacks {error}") from error
    return recipe


def scores_of(run: Path) -> dict[str, float]:
    """The last evaluation of the run, if it was ever evaluated. Raises UserError for a file that no run wrote."""
    path = run / "eval.jsonl"
    if not path.is_file():
        return {}
    rows = read_rows(path)
    require(rows != [], f"{path} is empty")
    last = rows[-1]
    require(isinstance(last, dict) and "step" in last, f"{path} line {len(rows)} is no evaluation of a run")
    return {name: value for name, value in last.items() if name == "step" or name.startswith(OF_EVALUATIONS)}
