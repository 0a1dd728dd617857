"""Publishing a result on the hub and fetching one.

    python -m rtdmd_lightning.hub push --adapters runs/a/cold_start runs/b/rtdmd --run runs/b --repo_id ME/NAME
    python -m rtdmd_lightning.hub pull --repo_id ME/NAME --out NAME

A published result holds a folder for each adapter with the published `generator_ema.pt`, all of them as one diffusers LoRA file,
the recipe, a model card, the method's equations, and `result.json`, which says in what order the adapters are stacked. To log in,
use `hf auth login`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from rtdmd_lightning import roles as lora
from rtdmd_lightning.convert import convert
from rtdmd_lightning.models.families import family_of
from rtdmd_lightning.models.folder import read_config
from rtdmd_lightning.publishing.model_card import METHOD_FILE, Result, method_text, model_card
from rtdmd_lightning.roles import Adapter, writing
from rtdmd_lightning.utils.command_line import command_parser
from rtdmd_lightning.utils.errors import UserError, readable_errors

RESULT = "result.json"
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
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = gather(adapters, run, base, folder)
        model_card(result, repo_id).save(folder / "README.md")
        (folder / METHOD_FILE).write_text(method_text(), encoding="utf-8")
        api = HfApi(endpoint=endpoint, token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"{result.method} adapters")
        except (HfHubHTTPError, OfflineModeIsEnabled) as error:
            raise UserError(f"the hub did not take {repo_id}: {error}") from error
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
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.snapshot_download(repo_id, revision=revision, local_dir=out, allow_patterns=FETCHED)
    except (HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise UserError(f"the hub did not give {repo_id}: {error}") from error
    if not (out / RESULT).is_file():
        raise UserError(
            f"{repo_id} is no result of this project: it has no {RESULT} (fetch its files with `hf download`)"
        )
    folders = [str(out / name) for name in json.loads((out / RESULT).read_text())["adapters"]]
    for folder in folders:
        lora.read(folder)
    return folders


def gather(adapters: Sequence[str], run: Path, base: str | None, folder: Path) -> Result:
    """Write everything but the card into a folder. Raises UserError where an adapter does not fit or a file is missing."""
    config = _config(run)
    backbone = config["model"]["init_args"]["backbone"]["init_args"]
    trained_on = (
        backbone.get("generator_pretrained") or backbone["pretrained"]
    )  # FLUX.2's student may have its own base
    names = _names(adapters)
    read = {name: lora.read(path) for name, path in zip(names, adapters, strict=True)}
    for name, adapter in read.items():
        writing.write_published(adapter, folder / name)
    convert([str(folder / name) for name in names], trained_on, "diffusers", folder)
    family = family_of(trained_on)
    distilled = read_config(family.transformer_class, trained_on, "transformer").get("guidance_embeds")
    result = Result(
        base=base or trained_on,
        adapters={name: _ranks(adapter) for name, adapter in read.items()},
        pipeline=family.pipeline_class.__name__,
        guidance_scale=backbone["guidance"] if distilled else 1.0,
        config=config,
        scores=_scores(run),
    )
    (folder / "recipe.yaml").write_text(result.recipe, encoding="utf-8")
    told = {"base": result.base, "adapters": names, "steps": result.steps, "eta": result.eta, "scores": result.scores}
    (folder / RESULT).write_text(json.dumps(told, indent=2), encoding="utf-8")
    return result


def _config(run: Path) -> dict[str, Any]:
    """What of a run's configuration is its recipe: the trainer's part is about one machine."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"the run {run} has no config.yaml; give the log folder that training wrote")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        "seed_everything": config["seed_everything"],
        "max_steps": config["trainer"]["max_steps"],
        "model": config["model"],
        "data": config["data"],
    }


def _scores(run: Path) -> dict[str, float]:
    """The last evaluation of the run, if it was ever evaluated."""
    path = run / "eval.jsonl"
    if not path.is_file():
        return {}
    last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return {name: value for name, value in last.items() if name == "step" or name.startswith("eval/")}


def _names(adapters: Sequence[str]) -> list[str]:
    paths = [Path(path).resolve() for path in adapters]
    names = [path.name if path.is_dir() else path.parent.name for path in paths]
    if not names or len(set(names)) != len(names):
        raise UserError(f"adapters are named after their folders, which must differ: {names}")
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
    parser = command_parser(prog="python -m rtdmd_lightning.hub")
    commands = parser.add_subcommands()
    commands.add_subcommand("push", pushing, help="publish a result")
    commands.add_subcommand("pull", pulling, help="fetch a result")
    options = parser.parse_args(arguments).as_dict()
    if options["subcommand"] == "push":
        print(f"published: {push(**options['push'])}")
    else:
        print(f"--adapters {' '.join(pull(**options['pull']))}")


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
