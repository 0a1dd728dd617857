"""The prompt sets that the configs name, as files in `prompts/`: `make prompts`, or

    rtdmd prompts [NAME ...] [--folder prompts]

GenEval's two are generated; the others are downloaded from where they are published, and checked. What cannot be had is told
with the file to put where, and does not keep the others from being made.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtdmd_lightning.data.prompt_downloads import GitHubFile, HubFile, PublishedFile, obtain
from rtdmd_lightning.data.prompt_files import read_prompt_file
from rtdmd_lightning.data.prompt_formats import from_drawbench_csv, from_geneval2_lines, from_ocr_text
from rtdmd_lightning.geneval import prompts as geneval_prompts
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.files import appearing_at

FLOW_GRPO = ("yifan123/flow_grpo", "879042cf5707f8b90daa98d147d7deac2317c5da")
RTDMD = ("Harahan/RTDMD", "bdfabaa97adaf883ee22178bd14ae2ac27938093")  # the authors' own


@dataclass(frozen=True)
class Generated:
    """A set that rules make.

    target: name of the file of prompts; `.txt` holds the prompts alone, `.jsonl` all that is known of them.
    sha256: what that file must have, where it is compared with published results.
    """

    target: str
    generate: Callable[[], list[dict]]
    sha256: str | None = None


@dataclass(frozen=True)
class Downloaded:
    """A set that is published: its file, and what reads that."""

    target: str
    file: PublishedFile
    read: Callable[[Path], list[dict]]


PROMPT_SETS: dict[str, Generated | Downloaded] = {
    "geneval": Generated(
        "geneval.jsonl",
        geneval_prompts.test_prompts,
        sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    ),
    "geneval_train": Generated("geneval_train.jsonl", geneval_prompts.training_prompts),
    "geneval2": Downloaded(
        "geneval2.jsonl",
        GitHubFile(
            "facebookresearch/GenEval2",
            "geneval2_data.jsonl",
            revision="a6e82d2289e8d418f27f0adee77908b07060eea3",
            sha256="09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43",
        ),
        from_geneval2_lines,
    ),
    "drawbench": Downloaded(
        "drawbench.txt",
        HubFile(
            "sayakpaul/drawbench",
            "DrawBench Prompts - Sheet1.csv",
            revision="ad794cba698c253ffdb6d18eff3fc87b004c1135",
        ),
        from_drawbench_csv,
    ),
    "hpsv3": Downloaded(
        "hpsv3.txt",
        GitHubFile(
            RTDMD[0],
            "dataset/hpsv3/test.txt",
            revision=RTDMD[1],
            sha256="31592ea9af348610c0c840147bc5bc5eeac34d4dfd831c62a298c04e7ec4b65d",
        ),
        read_prompt_file,
    ),
    "ocr": Downloaded(
        "ocr.txt", GitHubFile(FLOW_GRPO[0], "dataset/ocr/test.txt", revision=FLOW_GRPO[1]), from_ocr_text
    ),
    "pickapic": Downloaded(
        "pickapic.txt",
        GitHubFile(
            FLOW_GRPO[0],
            "dataset/pickscore/train.txt",
            revision=FLOW_GRPO[1],
            sha256="2f425adcbb9a6d0feee7c6c448e1cb83a1f71deca9434b803907e2578eca837f",
        ),
        read_prompt_file,
    ),
}


def make_prompt_set(name: str, folder: Path) -> int:
    """Write a set's file of prompts; returns how many it holds. Raises UserError where it cannot be made."""
    prompt_set = PROMPT_SETS[name]
    if isinstance(prompt_set, Generated):
        entries = prompt_set.generate()
    else:
        entries = prompt_set.read(obtain(prompt_set.file, name, folder))
    content = _written(entries, prompt_set.target)
    if isinstance(prompt_set, Generated) and prompt_set.sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(
            f"{name}: numpy {np.__version__} draws other prompts than the published ones; install numpy 2.4"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with appearing_at(folder / prompt_set.target) as partial:
        partial.write_bytes(content)
    return len(entries)


def _written(entries: list[dict], target: str) -> bytes:
    if target.endswith(".txt"):
        return "".join(f"{entry['prompt']}\n" for entry in entries).encode()
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
