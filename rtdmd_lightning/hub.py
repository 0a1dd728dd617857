"""Publishing a result on the hub and fetching one.

    rtdmd hub push --adapters runs/a/cold_start runs/b/rtdmd --run runs/b --repo_id ME/NAME
    rtdmd hub pull --repo_id ME/NAME --out NAME

A published result holds a folder for each adapter with the published `generator_ema.pt`, all of them as one diffusers LoRA file,
`CPSScheduler` as a file of its own, the recipe, a model card, the method's equations, and `result.json`, which says in what order
the adapters are stacked. To log in, use `hf auth login`.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("hub")

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from httpx2 import HTTPError, InvalidURL
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from rtdmd_lightning import roles as lora
from rtdmd_lightning.convert import convert
from rtdmd_lightning.models.families import family_of
from rtdmd_lightning.models.folder import read_config
from rtdmd_lightning.publishing.model_card import METHOD_FILE, Result, method_text, model_card
from rtdmd_lightning.publishing.run_folder import recipe_of, scores_of
from rtdmd_lightning.publishing.scheduler_file import write_scheduler
from rtdmd_lightning.roles import Adapter, writing
from rtdmd_lightning.roles.adapter import METHOD_SCALE
from rtdmd_lightning.utils.command_line import command_parser
from rtdmd_lightning.utils.errors import UserError, first_line, readable_errors, require
from rtdmd_lightning.utils.files import check_output
from rtdmd_lightning.utils.json_text import read_json

RESULT = "result.json"
HUB_ERRORS = (
    HTTPError,
    InvalidURL,
    EntryNotFoundError,
    OSError,
    ValueError,
)  # no network, no such repository, no such name
FETCHED = ["*/generator_ema.pt", "pytorch_lora_weights.safetensors", RESULT, "recipe.yaml", "README.md", METHOD_FILE]


def push(
    adapters: Sequence[str],
    run: Path,
    repo_id: str,
    base: str | None = None,
    private: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Publish a stack of adapters; returns the address of the commit.

    Args:
        adapters: files or folders in any format, in the order of the stack; a folder's name is the adapter's name.
        run: the log folder of the last stage, with its `config.yaml` and, if it was evaluated, `eval.jsonl`.
        repo_id: `OWNER/NAME`, made if it does not exist.
        base: the hub id of the generator's base model, where the run read it from a folder.
        private: of a repository that is made.
        endpoint: another hub than huggingface.co.
        token: by default that of `hf auth login`.
    """
    _check_id(repo_id)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = gather(adapters, run, base, folder)
        model_card(result, repo_id).save(folder / "README.md")
        (folder / METHOD_FILE).write_text(method_text(), encoding="utf-8")
        write_scheduler(folder)
        api = HfApi(endpoint=endpoint, token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"{result.method} adapters")
        except HUB_ERRORS as error:
            raise UserError(f"the hub did not take {repo_id}: {first_line(error)}") from error
    return commit.commit_url


def pull(
    repo_id: str, out: Path, revision: str | None = None, endpoint: str | None = None, token: str | None = None
) -> list[str]:
    """Fetch a published result; returns its adapters in order, for `--adapters` of the other commands.

    Args:
        repo_id: `OWNER/NAME`.
        out: the folder to fetch into.
        revision: a branch, tag or commit.
        endpoint, token: see `push`.
    """
    _check_id(repo_id)
    check_output(out, "--out")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.snapshot_download(repo_id, revision=revision, local_dir=out, allow_patterns=FETCHED)
    except HUB_ERRORS as error:
        raise UserError(f"the hub did not give {repo_id}: {first_line(error)}") from error
    if not (out / RESULT).is_file():
        raise UserError(
            f"{repo_id} is no result of this project: it has no {RESULT} (fetch its files with `hf download`)"
        )
    folders = [str(out / name) for name in _adapters_of(out / RESULT)]
    for folder in folders:
        lora.read(folder)
    return folders


def gather(adapters: Sequence[str], run: Path, base: str | None, folder: Path) -> Result:
    """Write everything but the card into a folder. Raises UserError where an adapter does not fit or a file is missing."""
    config = recipe_of(run)
    backbone = config["model"]["init_args"]["backbone"]["init_args"]
    trained_on = (
        backbone.get("generator_pretrained") or backbone["pretrained"]
    )  # FLUX.2's student may have its own base
    names = _names(adapters)
    read = {name: lora.read(path) for name, path in zip(names, adapters, strict=True)}
    for name, adapter in read.items():
        writing.write_published(adapter.with_scale(METHOD_SCALE), folder / name)
    convert([str(folder / name) for name in names], trained_on, "diffusers", folder)
    family = family_of(trained_on)
    distilled = read_config(family.transformer_class, trained_on, "transformer").get("guidance_embeds")
    result = Result(
        base=base or trained_on,
        adapters={name: _ranks(adapter) for name, adapter in read.items()},
        pipeline=family.pipeline_class.__name__,
        guidance_scale=backbone["guidance"] if distilled else 1.0,
        config=config,
        scores=scores_of(run),
    )
    (folder / "recipe.yaml").write_text(result.recipe, encoding="utf-8")
    told = {"base": result.base, "adapters": names, "steps": result.steps, "eta": result.eta, "scores": result.scores}
    (folder / RESULT).write_text(json.dumps(told, indent=2), encoding="utf-8")
    return result


def _names(adapters: Sequence[str]) -> list[str]:
    paths = [Path(path).resolve() for path in adapters]
    names = [path.name if path.is_dir() else path.parent.name for path in paths]
    if not all(names) or len(set(names)) != len(names) or not names:
        raise UserError(f"adapters are named after their folders, which must differ: {names}")
    return names


def _check_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise UserError(f"--repo_id {repo_id!r}: {first_line(error)}") from error


def _adapters_of(result: Path) -> list[str]:
    """The names in a fetched `result.json`, which somebody else wrote: each must be a folder beside it."""
    content = read_json(result)
    names = content.get("adapters", []) if isinstance(content, dict) else []
    if not isinstance(names, list) or not names:
        raise UserError(f"{result} must be an object with a list of names under 'adapters'")
    for name in names:
        inside = isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\0" not in name
        require(inside, f"{result}: the adapter {name!r} is no name of a folder beside it")
    return names


def _ranks(adapter: Adapter) -> str:
    ranks = sorted({update.rank for update in adapter.layers.values()})
    return f"rank {', '.join(map(str, ranks))}"


def main(arguments: list[str]) -> None:
    pushing, pulling = command_parser(), command_parser()
    pushing.add_argument(
        "--adapters", nargs="+", type=str, required=True, help="files or folders, in the stack's order"
    )
    pushing.add_function_arguments(push, skip={"adapters"})
    pulling.add_function_arguments(pull)
    parser = command_parser()
    commands = parser.add_subcommands()
    commands.add_subcommand("push", pushing, help="publish a result")
    commands.add_subcommand("pull", pulling, help="fetch a result")
    options = parser.parse_args(arguments).as_dict()
    if options["subcommand"] == "push":
        print(f"published: {push(**options['push'])}")
    else:
        print(f"--adapters {shlex.join(pull(**options['pull']))}")


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
