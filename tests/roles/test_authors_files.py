"""Files of the authors' scripts against the same adapter in this project's own."""

import json

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file

from rtdmd_lightning import convert
from rtdmd_lightning import roles as adapters
from rtdmd_lightning.models.families import load_transformer
from rtdmd_lightning.roles import writing
from rtdmd_lightning.roles.reading import read_all
from rtdmd_lightning.utils.errors import UserError
from tests.support.random_adapters import assert_same, random_adapter

TEMPLATES = [
    f"{prefix}{{path}}.lora_{{half}}{name}.weight"
    for prefix in ("base_model.model.", "", "module.")
    for name in ("", ".default")
]
FIRST = "transformer_blocks.0.attn.to_q"


def authors_folder(adapter, folder, template: str, rank: int = 4, alpha: int = 6):
    """`checkpoint-N`, with the fields that the authors' scripts write into the configuration."""
    transformer = folder / "checkpoint-15000" / "transformer"
    transformer.mkdir(parents=True)
    save_file(adapter.state_dict(template), transformer / "adapter_model.safetensors")
    targets = ["attn.to_q", "attn.add_k_proj", "attn.to_out.0"]
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "peft_type": "LORA",
        "task_type": None,
        "init_lora_weights": "gaussian",
        "use_rslora": False,
    }
    (transformer / "adapter_config.json").write_text(json.dumps(config))
    return transformer.parent


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_peft_folder_of_a_checkpoint_is_read_whatever_its_keys_begin_with(template, tmp_path):
    """With an alpha that is not the method's, which its configuration says."""
    original = random_adapter(4, scale=1.5)
    checkpoint = authors_folder(original, tmp_path, template)
    for path in (checkpoint, checkpoint / "transformer", checkpoint / "transformer" / "adapter_model.safetensors"):
        assert_same(adapters.read(path), original)


def test_a_checkpoint_folder_is_read_as_its_peft_folder_which_knows_its_alpha(tmp_path):
    """The state dict of the same adapter lies beside it."""
    original = random_adapter(4, scale=1.5)
    checkpoint = authors_folder(original, tmp_path, TEMPLATES[3])
    torch.save(original.state_dict(), checkpoint / "generator_ema.pt")
    assert_same(adapters.read(checkpoint), original)
    assert adapters.read(checkpoint / "generator_ema.pt").scale == 2


def test_a_peft_folder_that_peft_named_without_its_wrapper(tiny_folder, tmp_path):
    """PEFT's own state dict of a model that is adapted in place, as diffusers does it."""
    original = random_adapter(4, scale=1.5)
    transformer = load_transformer(str(tiny_folder), torch.float32)
    inject_adapter_in_model(original.peft_config(), transformer)
    transformer.load_state_dict(original.state_dict(), strict=False)
    transformer.peft_config = {"default": original.peft_config()}
    save_file(get_peft_model_state_dict(transformer), tmp_path / "adapter_model.safetensors")
    original.peft_config().save_pretrained(tmp_path)
    assert_same(adapters.read(tmp_path), original)


def test_a_state_dict_of_ddp_is_the_one_without_its_prefix(tiny_folder, tmp_path):
    original = random_adapter(4)
    torch.save(original.state_dict("module.{path}.lora_{half}.default.weight"), tmp_path / "ddp.pt")
    assert_same(adapters.read(tmp_path / "ddp.pt"), original)
    convert.convert([str(tmp_path / "ddp.pt")], str(tiny_folder), "published", tmp_path / "ours")
    assert_same(adapters.read(tmp_path / "ours"), original)
    assert torch.load(tmp_path / "ours" / "generator_ema.pt", weights_only=True).keys() == original.state_dict().keys()


@pytest.mark.parametrize("other", ["module.", "base_model.model.", "transformer."])
def test_a_state_dict_of_two_kinds_of_keys_is_refused_and_names_the_fewer(other, tmp_path):
    state = random_adapter(4).state_dict()
    moved = f"{FIRST}.lora_A.default.weight"
    torch.save({f"{other}{key}" if key == moved else key: value for key, value in state.items()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"not like {other}{moved}$"):
        adapters.read(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["", ".default", ".second"])
def test_a_peft_folder_of_two_kinds_of_keys_is_refused(name, tmp_path):
    """By the prefix, and by the adapter's name."""
    state = random_adapter(4).state_dict(TEMPLATES[2])
    strange = f"{FIRST}.lora_A{name}.weight" if name else f"module.{FIRST}.lora_A.weight"
    state[strange] = state.pop(f"{FIRST}.lora_A.weight")
    checkpoint = authors_folder(random_adapter(4), tmp_path, TEMPLATES[2])
    save_file(state, checkpoint / "transformer" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=rf"not like {strange}$"):
        adapters.read(checkpoint)


def test_a_prefix_that_no_known_script_writes_is_refused(tmp_path):
    torch.save(random_adapter(4).state_dict("base_model.model.{path}.lora_{half}.default.weight"), tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"base_model\.model\.{FIRST}.*and 8 more$"):
        adapters.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("to", "alpha_from", "alpha"),
    [
        ("plain", None, 6),
        ("plain diffusers", None, 6),
        ("published", "the file", 6),
        ("peft", "adapter_config.json", 6),
        ("diffusers", "the file's metadata", 4),  # the rank: the scale is folded into B
    ],
)
def test_an_alpha_is_believed_where_the_file_says_none_and_checked_where_it_does(
    to, alpha_from, alpha, tiny_folder, tmp_path
):
    adapter = random_adapter(4, scale=1.5)
    if to == "plain":
        torch.save(adapter.state_dict(), tmp_path / "generator_ema.pt")
    elif to == "plain diffusers":
        state = adapter.state_dict("transformer.{path}.lora_{half}.weight")
        save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    elif to == "published":
        writing.write_published(adapter, tmp_path)
    elif to == "peft":
        writing.write_peft(adapter, tmp_path, str(tiny_folder))
    else:
        writing.write_diffusers(adapter, tmp_path, StableDiffusion3Pipeline)
    (file,) = read_all(tmp_path)
    assert file.alpha_from == alpha_from
    assert adapters.read(tmp_path, alpha=alpha).scale == alpha / 4
    if alpha_from is not None:
        with pytest.raises(UserError, match=f"made with alpha {alpha}, not 8"):
            adapters.read(tmp_path, alpha=8)
