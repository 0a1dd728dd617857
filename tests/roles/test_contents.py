"""What foreign adapter files may hold: numbers that no adapter has, and kinds of adapters that are none, are refused by name."""

import json
import math

import pytest
import torch
from peft import IA3Config
from safetensors.torch import load_file, save_file

from rtdmd_lightning import roles as adapters
from rtdmd_lightning.convert import main as convert
from rtdmd_lightning.models.families import family_of
from rtdmd_lightning.roles import Adapter, writing
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.utils.errors import UserError, readable_errors
from tests.support.random_adapters import random_adapter
from tests.support.tiny import tiny_module

LAYER = "transformer_blocks.1.attn.add_k_proj"
FORMATS = ("published", "peft", "diffusers", "checkpoint")


def write(to: str, adapter: Adapter, tiny_folder, tmp_path):
    """The file or folder to read, and the key of B of `LAYER` in it."""
    if to == "published":
        return writing.write_published(adapter, tmp_path), f"{LAYER}.lora_B.default.weight"
    if to == "peft":
        writing.write_peft(adapter, tmp_path, str(tiny_folder))
        return tmp_path, f"base_model.model.{LAYER}.lora_B.weight"
    if to == "diffusers":
        pipeline = family_of(str(tiny_folder)).pipeline_class
        return writing.write_diffusers(adapter, tmp_path, pipeline), f"transformer.{LAYER}.lora_B.weight"
    module = tiny_module(tiny_folder, lora=LoraSettings(rank=4, alpha=8))
    state = module.state_dict()
    (key,) = [key for key in state if key.endswith(f"{LAYER}.lora_B.generator_ema.weight")]
    state[key] = adapter.layers[LAYER].up
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", f"{LAYER}.lora_B.generator_ema.weight"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("to", FORMATS)
def test_numbers_that_are_not_finite_are_refused_with_file_and_key(to, bad, tiny_folder, tmp_path):
    adapter = random_adapter(4)
    adapter.layers[LAYER].up[3, 1] = bad
    path, key = write(to, adapter, tiny_folder, tmp_path)
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        adapters.read(path)
    assert str(tmp_path) in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("to", ["published", "peft", "diffusers"])
def test_numbers_of_another_kind_are_refused_with_file_and_key(to, dtype, tiny_folder, tmp_path):
    path, key = write(to, random_adapter(4), tiny_folder, tmp_path)
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    if to == "published":
        state = torch.load(file, weights_only=True)
        state[key] = state[key].to(dtype)
        torch.save(state, file)
    else:
        state = load_file(file)
        save_file(state | {key: state[key].to(dtype)}, file)
    with pytest.raises(UserError, match=str(dtype)) as caught:
        adapters.read(path)
    assert str(file) in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize("alpha", ["-1", "0", ".nan", ".inf"])
def test_an_alpha_that_is_no_scale_is_refused(alpha, tiny_folder, tmp_path, capsys):
    path, _ = write("published", random_adapter(4), tiny_folder, tmp_path / "a")
    options = ["--adapters", str(path), f"--base={tiny_folder}", "--to=peft", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as exit_, readable_errors():
        convert([*options, f"--alpha={alpha}"])
    told = capsys.readouterr().err
    assert exit_.value.code == 2 and "alpha must be a number above 0" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"lora_alpha": -8}, "alpha / rank must be a number above 0, not -2.0"),
        ({"lora_alpha": 0}, "alpha / rank must be a number above 0, not 0.0"),
        ({"lora_alpha": math.nan}, "not nan"),
        ({"lora_alpha": "8"}, "r and lora_alpha must be numbers"),
        ({"alpha_pattern": {"to_q": "many"}}, "to_q must have a number"),
        ({"alpha_pattern": {"(": 3}}, "does not describe a LoRA adapter"),
        ({"rank_pattern": [1]}, "does not describe a LoRA adapter"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"peft_type": None}, "None"),
    ],
)
def test_a_configuration_that_is_not_plain_lora_is_refused(change, wanted, tiny_folder, tmp_path):
    write("peft", random_adapter(4), tiny_folder, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=wanted) as caught:
        adapters.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_pefts_ia3_is_refused_by_name(tiny_folder, tmp_path):
    write("peft", random_adapter(4), tiny_folder, tmp_path)
    IA3Config(target_modules=["to_q"], feedforward_modules=[]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"adapter_config\.json describes an adapter of the kind 'IA3'"):
        adapters.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"peft_type": "LORA", "r": "\\ud800"}', "\x00"])
def test_a_configuration_that_is_no_json_object_is_refused(text, tiny_folder, tmp_path):
    write("peft", random_adapter(4), tiny_folder, tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        adapters.read(tmp_path)


@pytest.mark.parametrize("told", ["{", "[1]", '{"transformer.r": "x"}', '{"transformer.nope": 1}', "[" * 100_000])
def test_metadata_that_make_no_sense_are_refused(told, tiny_folder, tmp_path):
    path, _ = write("diffusers", random_adapter(4), tiny_folder, tmp_path)
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": told})
    with pytest.raises(UserError, match=r"metadata of .*pytorch_lora_weights\.safetensors"):
        adapters.read(path)


@pytest.mark.parametrize("content", [b"", b"just text\n", b"{}", b"(lp0\n", b"\x80\x04K\x01.", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors"])
def test_a_text_or_anything_else_under_a_weights_name_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        adapters.read(tmp_path / name)


@pytest.mark.parametrize("state", [{3: torch.zeros(2)}, {"state_dict": 3}, {"state_dict": {3: 4}}, {"a": [1]}])
@pytest.mark.parametrize("name", ["a.pt", "a.ckpt"])
def test_a_pickle_of_something_else_is_refused(name, state, tmp_path):
    torch.save(state, tmp_path / name)
    with pytest.raises(UserError, match=name):
        adapters.read(tmp_path / name)


def test_rslora_divides_by_the_roots_of_the_ranks(tiny_folder, tmp_path):
    """PEFT's `use_rslora`: alpha over the square root of each layer's own rank."""
    layers = random_adapter(4).layers | random_adapter(9, layers=("to_v",)).layers
    writing.write_peft(Adapter(layers, "mixed"), tmp_path, str(tiny_folder))
    path = tmp_path / "adapter_config.json"
    told = json.loads(path.read_text()) | {"use_rslora": True, "lora_alpha": 6, "alpha_pattern": {}}
    path.write_text(json.dumps(told))
    read = adapters.read(tmp_path)
    assert read.layers["transformer_blocks.0.attn.to_q"].scale == 6 / 2
    assert read.layers["transformer_blocks.0.attn.to_v"].scale == 6 / 3


def test_merging_into_a_bfloat16_base_rounds_once(tiny_folder):
    """The sum of weight and update is rounded, not the update before it."""
    transformer = torch.nn.ModuleDict({"a": torch.nn.Linear(32, 32, bias=False)}).bfloat16()
    before = transformer["a"].weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    update = adapters.LayerUpdate(
        torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator) / 10, 1.0
    )
    adapters.merge(transformer, Adapter({"a": update}, "one"))
    once = (before.double() + update.up.double() @ update.down.double()).bfloat16()
    twice = before + update.delta().bfloat16()
    assert torch.equal(transformer["a"].weight, once) and not torch.equal(once, twice)
