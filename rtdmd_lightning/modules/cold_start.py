"""Where stage 2 finds the result of stage 1."""

from pathlib import Path

from rtdmd_lightning.utils.errors import UserError

GENERATOR_FILE, FAKE_SCORE_FILE = "generator_ema.pt", "fake_score.pt"
AUTHORS_FAKE_SCORE_FILE = "fake_score_net.pt"  # in the authors' checkpoint-N
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
