"""What stage 2 starts from, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

from rtdmd_lightning.losses.settings import FinalStepSettings, PolicySettings
from rtdmd_lightning.modules.trainable import Trainable
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.errors import UserError, require

GENERATOR_FILE, FAKE_SCORE_FILE = "generator_ema.pt", "fake_score.pt"
AUTHORS_FAKE_SCORE_FILE = "fake_score_net.pt"  # in the authors' checkpoint-N
WHOLE_FAKE_SCORE = "fake_score"  # in the folder of a whole generator that of its fake score
FROM_BASE = "base"


def cold_start_files(cold_start: str, fake_score: str | None) -> tuple[str, str | None]:
    """The files of the generator's and of the fake score's cold start; None for a fake score that starts from the teacher.

    `cold_start` is a folder that stage 1 wrote (ours, or the authors' `checkpoint-N`), or the generator's file; `fake_score` is a
    file, `base`, or None for the one in the folder: `fake_score.pt`, or where there is none the authors' `fake_score_net.pt`.
    Raises UserError where a file does not exist: whether the fake score starts anew is the user's decision.
    """
    path = Path(cold_start)
    generator = path / GENERATOR_FILE if path.is_dir() else path
    if not generator.is_file():
        raise UserError(f"model.cold_start: {generator} does not exist; it is the {GENERATOR_FILE} that stage 1 writes")
    if fake_score == FROM_BASE:
        return str(generator), None
    names = (FAKE_SCORE_FILE, AUTHORS_FAKE_SCORE_FILE)
    files = [Path(fake_score)] if fake_score is not None else [generator.parent / name for name in names]
    for file in files:
        if file.is_file():
            return str(generator), str(file)
    raise UserError(
        f"the fake score's cold start {' or '.join(map(str, files))} does not exist: give its file as model.cold_start_fake, or "
        f"{FROM_BASE!r} to start the fake score from the teacher (published checkpoints hold the generator only)"
    )


def cold_start_folders(cold_start: str, fake_score: str | None) -> tuple[str, str | None]:
    """As `cold_start_files`, of whole transformers: folders with a `transformer/`, as stage 1 writes them where all of it trains.

    Raises UserError for a folder without one.
    """
    beside = str(Path(cold_start) / WHOLE_FAKE_SCORE)
    folders = [cold_start] if fake_score == FROM_BASE else [cold_start, fake_score or beside]
    for option, folder in zip(("model.cold_start", "model.cold_start_fake"), folders, strict=False):
        require(
            (Path(folder) / "transformer").is_dir(),
            f"{option}: {folder} has no folder transformer, which model.trainable=full starts from; its stage 1 writes one "
            f"(adapters are model.trainable=lora's; {FROM_BASE!r} starts the fake score from the teacher)",
        )
    return cold_start, None if fake_score == FROM_BASE else folders[-1]


COLD_STARTS: dict[Trainable, Callable[[str, str | None], tuple[str, str | None]]] = {
    "lora": cold_start_files,
    "full": cold_start_folders,
}


def check_groups(images_per_prompt: int, micro_batches: int) -> None:
    """Raises UserError for an epoch in which no rewards can be compared."""
    require(
        images_per_prompt >= 2,
        f"model.images_per_prompt must be at least 2, not {images_per_prompt}: rewards are compared within a group",
    )
    require(micro_batches >= 1, f"model.micro_batches must be at least 1, not {micro_batches}")


def check_reinforcement(
    policy: PolicySettings,
    final_step: FinalStepSettings,
    sampler: SamplerSettings,
    rewards: RewardMixture,
    images_per_prompt: int,
    micro_batches: int,
) -> None:
    """Raises UserError for options that contradict one another, or leave nothing to train."""
    check_groups(images_per_prompt, micro_batches)
    candidates = policy.candidates(len(sampler.steps))
    require(
        not policy.weight or 1 <= policy.trained_steps <= len(candidates),
        f"model.policy.trained_steps must lie between 1 and {len(candidates)}, the number of stochastic steps that may be "
        f"chosen, not {policy.trained_steps}",
    )
    require(
        not policy.kl_weight or policy.weight > 0,
        "model.policy.kl_weight belongs to the policy's steps: it needs a model.policy.weight above 0",
    )
    require(
        not policy.weight or sampler.eta > 0,
        "with model.sampler.eta 0 no step is stochastic: set model.policy.weight to 0",
    )
    require(
        not final_step.reward_weight or bool(rewards.differentiable),
        f"none of the rewards {sorted(rewards.weights)} is back-propagated: name a differentiable one in "
        "model.rewards.back_propagated, or set model.final_step.reward_weight to 0",
    )
    require(
        policy.weight > 0 or final_step.is_trained,
        "nothing is trained: all of model.policy's and model.final_step's weights are 0",
    )
