"""Which scorers work here, and what the others want:

    rtdmd doctor [NAME ...] [--device cuda:1]

Every scorer is imported, its weights are looked for, and it scores one picture, `doctor.png`: a red ball under the words
"HELLO 42". Nothing is downloaded: for what is missing the command that fetches it is shown. The exit status is 1 if any of the
scorers asked for (by default all that have a name) does not work.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("doctor")

import contextlib
import gc
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import torch
import torch.nn.functional as F
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from rtdmd_lightning.evaluation.images import read_image
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardError, RewardMixture
from rtdmd_lightning.rewards.registry import REWARDS, reward_class
from rtdmd_lightning.rewards.shapes import ShapesReward
from rtdmd_lightning.shapes.world import IMAGE_SIZE
from rtdmd_lightning.utils.command_line import command_parser, wide_console
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.own_code import errors_of_own_code
from rtdmd_lightning.utils.processes import process_device

PICTURE = Path(__file__).parent / "rewards" / "doctor.png"
PROMPT = 'a photo of a red sports ball under the words "HELLO 42"'
METADATA = {
    "tag": "colors",
    "include": [{"class": "sports ball", "count": 1, "color": "red"}],
    "vqa_list": [["How many balls are in the image?", "one"], ["Is the ball red?", "Yes"]],
}
OF_THE_HUB = r" \([A-Z][^()]*\)$"  # what the hub says of a network that is left alone here, at the end of a sentence
SHAPES_METADATA = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about a scorer.

    Args:
        name: as it was asked for.
        weights: where they are.
        score: of the picture; None where the scorer does not work.
        seconds: that loading and scoring took.
        problems: why it does not work, a sentence each.
    """

    name: str
    weights: list[str]
    score: float | None = None
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


def examine(name: str, device: torch.device) -> Diagnosis:
    """Import a scorer, look for its weights, and let it score the picture."""
    weights: list[str] = []
    try:
        with errors_of_own_code():
            reward = reward_class(name)()
            sources = reward.sources()
    except (UserError, TypeError) as error:  # TypeError: a class of one's own whose arguments have no defaults
        return Diagnosis(name, weights, problems=(str(error),))
    problems = []
    for source in sources:
        try:
            weights.append(source.on_disk())
        except UserError as error:
            problems.append(str(error))
    if problems:
        return Diagnosis(name, weights, problems=tuple(problems))
    start = time.perf_counter()
    try:
        score = score_picture(reward, device)
    except Exception as error:  # whatever is wrong with a scorer is what is wanted here, and the next one's turn comes
        told = str(error) if isinstance(error, UserError | RewardError) else f"{name}: {error!r}"
        return Diagnosis(name, weights, problems=(told,))
    return Diagnosis(name, weights, score, time.perf_counter() - start)


def score_picture(reward: Reward, device: torch.device) -> float:
    """Load a reward and score the picture; for the toy world's checker it is made as small as that world's are."""
    mixture = RewardMixture([reward], {reward.name: 1.0})
    mixture.to(device)
    image, metadata = read_image(PICTURE)[None].to(device), METADATA
    if isinstance(reward, ShapesReward):
        image, metadata = F.interpolate(image, (IMAGE_SIZE, IMAGE_SIZE), mode="area"), SHAPES_METADATA
    scores: dict[str, Tensor] = mixture.score(image, [PROMPT], [metadata])
    return scores[reward.name].item()


@contextlib.contextmanager
def hub_cache_only() -> Iterator[None]:
    """No downloads: some scorers are 16 GB."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def doctor(names: Sequence[str] = (), device: str | None = None) -> None:
    """Examine scorers, print what was found. Exits with status 1 where one does not work.

    Args:
        names: of the shipped rewards, or class paths; by default all shipped ones.
        device: to score on; by default an accelerator where there is one.
    """
    place = process_device(device)
    console = wide_console()
    diagnoses = []
    with hub_cache_only(), console.status("") as status:
        for name in names or REWARDS:
            status.update(f"{name} on {place}")
            diagnoses.append(examine(name, place))
            _free_memory(place)
    console.print(_table(diagnoses, place))
    problems = (problem for diagnosis in diagnoses for problem in diagnosis.problems)
    for told in dict.fromkeys(re.sub(OF_THE_HUB, "", problem) for problem in problems):
        console.print(f"- {told}", soft_wrap=not console.is_terminal, markup=False, highlight=False)
    if any(diagnosis.problems for diagnosis in diagnoses):
        sys.exit(1)


def main(arguments: list[str]) -> None:
    parser = command_parser()
    parser.add_argument("names", nargs="*", type=str)
    parser.add_function_arguments(doctor, skip={"names"})
    doctor(**parser.parse_args(arguments).as_dict())


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def _table(diagnoses: list[Diagnosis], device: torch.device) -> Table:
    table = Table("reward", "works", "score", "s", title=f"Scorers on {device}")
    table.add_column("weights", overflow="fold")  # paths, which are long
    for diagnosis in diagnoses:
        works = diagnosis.score is not None
        measured = (f"{diagnosis.score:.3f}", f"{diagnosis.seconds:.1f}") if works else ("-", "-")
        table.add_row(diagnosis.name, "yes" if works else "no", *measured, escape("\n".join(diagnosis.weights)) or "-")
    return table


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
