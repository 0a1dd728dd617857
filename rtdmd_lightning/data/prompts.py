"""Reading prompts: a file, a folder, a data set on the hub, or the toy world's own."""

from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from rtdmd_lightning.data.prompt_files import SUFFIXES, prompt_file_in, read_prompt_file, usual_names
from rtdmd_lightning.shapes.dataset import EVEN_WEIGHTS, HARD_WEIGHTS, TAG_WEIGHTS, sample_metadata
from rtdmd_lightning.shapes.prompts import held_out_prompts
from rtdmd_lightning.utils.errors import UserError, first_line

TRAINING_SAMPLE = 8192
TRAINING_WEIGHTS = {"train": TAG_WEIGHTS, "train:even": EVEN_WEIGHTS, "train:hard": HARD_WEIGHTS}


def load_prompts(source: str) -> list[dict]:
    """Prompts as metadata dictionaries with at least the key `prompt`.

    `source` is one of

    * `shapes:train`: a fixed sample of the toy world's training prompts, tags in its teacher's proportions;
      `shapes:train:even`: in equal ones; `shapes:train:hard`: mostly of two objects; `shapes:held_out:N`: N held-out prompts
      of every tag;
    * a file: `.txt` with a prompt a line, `.jsonl` with a JSON object a line, `.json` with a list of texts or of objects;
    * `FOLDER` or `FOLDER:SPLIT`: its file of a usual name, see `prompt_files.usual_names`;
    * `hub:OWNER/NAME`, `hub:OWNER/NAME:SPLIT` or `hub:OWNER/NAME:FILE`: the same of a data set's repository on the hub, from
      its cache or downloaded (of tables, Parquet and the like, nothing is read).

    Raises UserError for what is missing, empty, malformed or out of reach, naming it.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "shapes":
        return _shapes_prompts(source, rest)
    if scheme == "hub":
        return read_prompt_file(_fetched(source, rest))
    if Path(source).is_dir():
        return read_prompt_file(prompt_file_in(Path(source)))
    folder, _, split = source.rpartition(":")
    if folder and Path(folder).is_dir():
        return read_prompt_file(prompt_file_in(Path(folder), split))
    return read_prompt_file(Path(source))


def spread(count: int, most: int) -> list[int]:
    """All of `count` indices, or `most` of them, evenly from the first to the last (`count` at least 1)."""
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def _fetched(source: str, address: str) -> Path:
    """The prompt file of a data set on the hub, in the hub's cache."""
    repository, _, part = address.partition(":")
    names = [part] if part.endswith(SUFFIXES) else usual_names(part)
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=names))
    except (OSError, HFValidationError) as error:  # no network, no such repository, no permission; no such name
        raise UserError(
            f"the prompts {source!r} are neither within reach nor in the hub's cache; fetch them while online with `hf download "
            f"--repo-type dataset {repository}`, or name a file or folder ({first_line(error)})"
        ) from error
    return folder / part if part.endswith(SUFFIXES) else prompt_file_in(folder, part)


def _shapes_prompts(source: str, split: str) -> list[dict]:
    if split in TRAINING_WEIGHTS:
        return sample_metadata(np.random.default_rng(0), TRAINING_SAMPLE, TRAINING_WEIGHTS[split])
    name, _, per_tag = split.partition(":")
    if name == "held_out" and per_tag.isdecimal() and int(per_tag) > 0:
        try:
            return held_out_prompts(int(per_tag))
        except ValueError as error:
            raise UserError(f"{source!r}: {error}") from error
    raise UserError(
        f"unknown prompt source {source!r}; the toy world has "
        f"{', '.join(f'shapes:{name}' for name in TRAINING_WEIGHTS)} and shapes:held_out:N"
    )
