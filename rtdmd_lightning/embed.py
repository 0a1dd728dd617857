"""Fill an embedding cache ahead of training, which then needs no text encoders in memory.

    rtdmd embed --config configs/cold_start/sd35m.yaml --cache embeddings
    rtdmd fit --config configs/cold_start/sd35m.yaml \\
        --model.backbone.embedding_cache=embeddings --model.backbone.text_encoders=false

It loads the text encoders and nothing else of the model. Prompts that are in the cache are left alone, so an interrupted run
goes on where it stopped; under `torchrun` every process takes its share. It says first how large the cache will be (a prompt
takes 2 to 13 MB, SD3.5 to FLUX.2-klein 9B), and refuses a disk without the room.
Without a run's config, name model and prompts:

    rtdmd embed --base MODEL --prompts '[prompts.txt]' --cache embeddings
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("embed")

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from rich.progress import track

from rtdmd_lightning import fit
from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.evaluation.tasks import in_batches
from rtdmd_lightning.fitting.command_line import FitCLI
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.models.families import open_backbone
from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.errors import UserError, readable_errors, require
from rtdmd_lightning.utils.files import check_output
from rtdmd_lightning.utils.processes import process_device, processes


class RunSettings(FitCLI):
    """A run's configuration, checked as a whole; of all that it describes only the backbone is made."""

    def instantiate_classes(self) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Backbone, "backbone")
        asked = parser.parse_object({"backbone": self.config.model.init_args.backbone.as_dict()})
        self.backbone: Backbone = parser.instantiate(asked).backbone

    def prompt_sources(self) -> list[str]:
        """Of the training and of every callback that draws prompts."""
        callbacks = [callback for callback in self.config.callbacks.values() if callback is not None]
        options = [callback.as_dict().get("init_args", {}) for callback in callbacks]
        return [self.config.data.prompts, *(of_one["prompts"] for of_one in options if "prompts" in of_one)]


def embed(
    config: Path | None = None,
    options: Sequence[str] = (),
    base: str | None = None,
    backbone: dict[str, Any] | None = None,
    prompts: Sequence[str] = (),
    cache: str | None = None,
    batch_size: PositiveInt = 16,  # type: ignore[valid-type]
    device: str | None = None,
) -> None:
    """Put the embeddings of a run's prompts, and of the empty prompt that guidance needs, into a cache on disk.

    Args:
        config: of a run, as for `rtdmd_lightning.fit`: its backbone, its training prompts and those of its callbacks.
        options: overrides for it, as on the command line of `rtdmd_lightning.fit`.
        base: instead of a config, the base model: a diffusers folder or hub id.
        backbone: with `base`, further arguments of its backbone class; they must be those of the run that reads the cache.
        prompts: more prompts, see `rtdmd_lightning.data.prompts.load_prompts`.
        cache: the folder of the cache; by default the config's `embedding_cache`.
        batch_size: prompts encoded at once on each process.
        device: of the first process on a machine; by default an accelerator where there is one.
    """
    if (config is None) == (base is None):
        raise UserError("give either --config of a run or --base with --prompts")
    if config is not None:
        run = fit.parse(["--config", str(config), *options, *_cache_option(cache)], RunSettings)
        assert isinstance(run, RunSettings)
        model, sources = run.backbone, [*run.prompt_sources(), *prompts]
    else:
        assert base is not None
        model, sources = open_backbone(base, None, (backbone or {}) | {"embedding_cache": cache}), list(prompts)
    if model.embedding_cache is None or not sources:
        raise UserError("say where the embeddings go with --cache, and of what --prompts" if base else "give a --cache")
    check_output(Path(model.embedding_cache), "--cache")
    model.text_encoders = True  # whatever the run has
    wanted = list(dict.fromkeys(["", *(entry["prompt"] for source in sources for entry in load_prompts(source))]))
    embedder = PromptEmbedder(model)
    size = check_room(embedder, wanted)
    with processes() as (rank, world_size):
        if rank == 0:
            print(size)
        model.to(process_device(device))
        fill(embedder, wanted, batch_size, rank, world_size)


def check_room(embedder: PromptEmbedder, prompts: list[str]) -> str:
    """How large the prompts' cache will be, in a sentence; reads no weights. Raises UserError where the disk lacks the room."""
    store = embedder.store
    assert store is not None
    each = embedder.bytes_of_a_prompt()
    needed = each * sum(prompt not in store for prompt in prompts)
    sentence = f"{_gigabytes(each * len(prompts))} for {len(prompts):,} prompts, {each / 1e6:.2f} MB each"
    place = next(folder for folder in store.folder.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    require(
        needed <= free,
        f"the cache {store.folder} takes {sentence}; {_gigabytes(needed)} are still to be written, and the disk of {place} has "
        f"{_gigabytes(free)} free: make room, or give --cache on another disk",
    )
    return f"{store.folder}: {sentence}; {_gigabytes(needed)} are still to be written"


def fill(embedder: PromptEmbedder, prompts: list[str], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
    """Encode this process's share of the prompts that the embedder's store lacks; the first process tells how far it is."""
    store = embedder.store
    assert store is not None
    share = prompts[rank::world_size]
    missing = [prompt for prompt in share if prompt not in store]
    batches: Iterable[list[str]] = in_batches(missing, batch_size)
    if rank == 0:
        batches = track(list(batches), description=f"encoding {len(missing)} of {len(share)} prompts")
    for batch in batches:
        embedder.add_to_store([prompt for prompt in batch if prompt not in store])  # another process may have been here
    if rank == 0:
        size = sum(store.path(prompt).stat().st_size for prompt in share)
        print(f"{store.folder}: {len(missing)} of {len(share)} prompts were new; all take {size / 1e9:.3f} GB")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.0f} GB" if count >= 1e10 else f"{count / 1e9:.3f} GB"


def _cache_option(cache: str | None) -> list[str]:
    return [] if cache is None else [f"--model.backbone.embedding_cache={cache}"]


if __name__ == "__main__":
    with readable_errors():
        run_command(embed, sys.argv[1:])
