"""Adapters through all formats: round trips, stacks, and what is refused."""

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rtdmd_lightning import convert
from rtdmd_lightning import roles as adapters
from rtdmd_lightning.callbacks.export import write_adapter
from rtdmd_lightning.models.families import skeleton
from rtdmd_lightning.roles import Adapter, LayerUpdate, writing
from rtdmd_lightning.roles.apply import activate
from rtdmd_lightning.roles.lora import LoraSettings, adapter_state_dict
from rtdmd_lightning.roles.roles import EMA, GENERATOR
from rtdmd_lightning.utils.errors import UserError, readable_errors
from tests.support.random_adapters import assert_same, assert_same_update, random_adapter
from tests.support.tiny import tiny_backbone, tiny_module
from tests.support.tiny_backbones import save_tiny_flux

FORMATS = ("published", "peft", "diffusers")


@pytest.fixture
def transformer(tiny_folder) -> SD3Transformer2DModel:
    return SD3Transformer2DModel.from_pretrained(tiny_folder, subfolder="transformer").eval()


def output(transformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(2, 4, 8, 8, generator=generator),
            timestep=torch.tensor([700.0, 300.0]),
            encoder_hidden_states=torch.randn(2, 5, transformer.config.joint_attention_dim, generator=generator),
            pooled_projections=torch.randn(2, transformer.config.pooled_projection_dim, generator=generator),
        ).sample


def with_adapters(tiny_folder, *stack: Adapter) -> torch.Tensor:
    transformer = SD3Transformer2DModel.from_pretrained(tiny_folder, subfolder="transformer").eval()
    for adapter in stack:
        adapters.merge(transformer, adapter)
    return output(transformer)


def write(adapter: Adapter, to: str, folder, base) -> str:
    """Directly, without `convert`'s reading."""
    if to == "published":
        writing.write_published(adapter, folder)
    elif to == "peft":
        writing.write_peft(adapter, folder, str(base))
    else:
        writing.write_diffusers(adapter, folder, StableDiffusion3Pipeline)
    return str(folder)


@pytest.mark.parametrize("there", FORMATS)
@pytest.mark.parametrize("here", FORMATS)
def test_every_format_to_every_other_and_back_keeps_each_bit(here, there, tiny_folder, tmp_path):
    """Of an adapter whose alpha is 4 x rank: a published file becomes one of 2 x rank, a diffusers file one of the rank."""
    original, scales = random_adapter(4, scale=4.0), {"published": 2.0, "diffusers": 1.0}
    first = write(original, here, tmp_path / "first", tiny_folder)
    convert.convert([first], str(tiny_folder), there, tmp_path / "second")
    second = adapters.read(tmp_path / "second")
    assert_same_update(second, original)
    assert second.scale == scales.get(there, adapters.read(first).scale)
    convert.convert([str(tmp_path / "second")], str(tiny_folder), here, tmp_path / "third")
    assert_same_update(adapters.read(tmp_path / "third"), original)


@pytest.mark.parametrize("to", FORMATS)
def test_layers_of_different_ranks_and_alphas_survive_every_format(to, tiny_folder, tmp_path):
    """A stack whose members adapt different layers; where the form has one scale, B takes up the difference."""
    mixed = adapters.stack([random_adapter(2, scale=1.0), random_adapter(3, scale=4.0, layers=("to_q", "to_v"))])
    assert {update.rank for update in mixed.layers.values()} == {2, 3, 5} and mixed.scale is None
    folder = write(mixed, to, tmp_path / "mixed", tiny_folder)
    convert.convert([folder], str(tiny_folder), to, tmp_path / "again")
    read = adapters.read(tmp_path / "again")
    assert read.layers.keys() == mixed.layers.keys()
    for path, update in mixed.layers.items():
        torch.testing.assert_close(read.layers[path].delta(), update.delta())


def test_the_stack_is_merging_in_order_and_is_one_adapter_and_is_not_the_second_in_the_firsts_place(
    tiny_folder, tmp_path
):
    first, second = random_adapter(2), random_adapter(3, scale=1.0)
    paths = [write(first, "published", tmp_path / "1", tiny_folder), write(second, "peft", tmp_path / "2", tiny_folder)]
    one_after_the_other = with_adapters(tiny_folder, first, second)
    convert.convert(paths, str(tiny_folder), "merged", tmp_path / "merged")
    merged = SD3Transformer2DModel.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(output(merged), one_after_the_other, rtol=0, atol=1e-5)
    for to in FORMATS:
        convert.convert(paths, str(tiny_folder), to, tmp_path / to)
        single = adapters.read(tmp_path / to)
        assert {update.rank for update in single.layers.values()} == {2 + 3}
        torch.testing.assert_close(with_adapters(tiny_folder, single), one_after_the_other, rtol=0, atol=1e-5)
    for wrong in ((second,), (first,)):
        assert (with_adapters(tiny_folder, *wrong) - one_after_the_other).abs().max() > 1e-2


def test_merging_is_pefts_merging(transformer, tiny_folder):
    adapter = random_adapter(4, scale=1.5)
    adapters.inject(transformer, "a", adapter)
    activate(transformer, ["a"])
    adapted = output(transformer)
    activate(transformer, [])
    for module in transformer.modules():
        if hasattr(module, "merge"):
            module.merge(adapter_names=["a"])
    torch.testing.assert_close(output(transformer), adapted, rtol=0, atol=1e-5)
    torch.testing.assert_close(with_adapters(tiny_folder, adapter), adapted, rtol=0, atol=1e-5)


def test_a_file_that_peft_wrote_itself(transformer, tiny_folder, tmp_path):
    """With suffixes for targets and patterns of rank and alpha, none of which this project writes."""
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_v"],
        rank_pattern={"to_v": 2},
        alpha_pattern={"1.attn.to_q": 1},
        init_lora_weights=False,
    )
    model = get_peft_model(transformer, config)
    expected = output(model.base_model.model)
    model.save_pretrained(tmp_path)
    adapter = adapters.read(tmp_path)
    assert adapter.layers["transformer_blocks.1.attn.to_q"].scale == 1 / 4
    assert adapter.layers["transformer_blocks.1.attn.to_v"].scale == 6 / 2
    torch.testing.assert_close(with_adapters(tiny_folder, adapter), expected, rtol=0, atol=1e-5)


def test_a_folder_that_peft_reads_itself(transformer, tiny_folder, tmp_path):
    adapter = adapters.stack([random_adapter(2), random_adapter(3, scale=1.0, layers=("to_q", "to_v"))])
    convert.convert(
        [write(adapter, "published", tmp_path / "a", tiny_folder)], str(tiny_folder), "peft", tmp_path / "b"
    )
    model = PeftModel.from_pretrained(transformer, tmp_path / "b")
    expected = with_adapters(tiny_folder, adapter)
    torch.testing.assert_close(output(model.base_model.model), expected, rtol=0, atol=1e-5)


def test_the_stock_sd3_pipeline_loads_the_diffusers_file(tiny_folder, tmp_path):
    adapter = adapters.stack([random_adapter(2), random_adapter(3, scale=1.0, layers=("to_q", "to_v"))])
    source = write(adapter, "peft", tmp_path / "a", tiny_folder)
    convert.convert([source], str(tiny_folder), "diffusers", tmp_path / "b")
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.load_lora_weights(tmp_path / "b")
    expected = with_adapters(tiny_folder, adapter)
    torch.testing.assert_close(output(pipeline.transformer), expected, rtol=0, atol=1e-5)


def test_the_stock_flux_pipeline_loads_the_diffusers_file(tmp_path):
    base = tmp_path / "flux"
    save_tiny_flux(base, guidance_embeds=True)
    blocks = ("transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0")
    layers = {f"{block}.attn.to_q": LayerUpdate(torch.randn(2, 32), torch.randn(32, 2), 2.0) for block in blocks}
    writing.write_published(Adapter(layers, "flux"), tmp_path / "a")
    convert.convert([str(tmp_path / "a")], str(base), "diffusers", tmp_path / "b")
    pipeline = FluxPipeline.from_pretrained(base)
    weights = {path: pipeline.transformer.get_parameter(f"{path}.weight").clone() for path in layers}
    untouched = pipeline.transformer.get_parameter("single_transformer_blocks.1.attn.to_q.weight").clone()
    pipeline.load_lora_weights(tmp_path / "b")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for path, update in layers.items():
        fused = pipeline.transformer.get_parameter(f"{path}.weight")
        torch.testing.assert_close(fused, weights[path] + update.delta(), rtol=1e-5, atol=1e-5)
    assert torch.equal(pipeline.transformer.get_parameter("single_transformer_blocks.1.attn.to_q.weight"), untouched)


def lose_a_key(folder):
    path = folder / "pytorch_lora_weights.safetensors"
    state = load_file(path)
    state["transformer.transformer_blocks.0.attn.renamed.lora_A.weight"] = state.pop(
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    )
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    save_file(state, path, metadata=header["__metadata__"])


def lose_the_metadata(folder):
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})


def mistake_alpha(folder):
    path = folder / "pytorch_lora_weights.safetensors"
    told = {f"transformer.{name}": value for name, value in {"r": 4, "lora_alpha": 8}.items()}
    targets = [
        key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in load_file(path) if "_A" in key
    ]
    told["transformer.target_modules"] = targets
    save_file(load_file(path), path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(told)})


def test_what_diffusers_reads_does_not_depend_on_the_metadata(tiny_folder, tmp_path):
    """Every scale is in B, also where ranks and scales differ."""
    adapter = adapters.stack([random_adapter(2), random_adapter(3, scale=1.0, layers=("to_q", "to_v"))])
    write(adapter, "diffusers", tmp_path, tiny_folder)
    writing.check_diffusers_reads_all(adapter, tmp_path, skeleton(str(tiny_folder)))
    lose_the_metadata(tmp_path)
    writing.check_diffusers_reads_all(adapter, tmp_path, skeleton(str(tiny_folder)))


@pytest.mark.parametrize("damage", [lose_a_key, mistake_alpha])
def test_the_check_of_what_diffusers_reads_does_fail(damage, tiny_folder, tmp_path):
    """diffusers itself loads both with a warning or none at all."""
    adapter = random_adapter(4)
    write(adapter, "diffusers", tmp_path, tiny_folder)
    writing.check_diffusers_reads_all(adapter, tmp_path, skeleton(str(tiny_folder)))
    damage(tmp_path)
    with pytest.raises(UserError, match=r"diffusers would not apply.*transformer_blocks\.0\.attn\.to_q"):
        writing.check_diffusers_reads_all(adapter, tmp_path, skeleton(str(tiny_folder)))


def test_without_metadata_alpha_is_the_rank_or_what_the_file_says_per_layer(tiny_folder, tmp_path):
    adapter = random_adapter(4)
    write(adapter, "diffusers", tmp_path, tiny_folder)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    lose_the_metadata(tmp_path)
    assert_same(adapters.read(path), adapter.with_scale(1.0))
    alphas = {f"transformer.{layer}.alpha": torch.tensor(8.0) for layer in adapter.layers}
    save_file(load_file(path) | alphas, path)
    twice = {layer: replace(update, scale=2.0) for layer, update in adapter.with_scale(1.0).layers.items()}
    assert_same(adapters.read(path), replace(adapter, layers=twice))


def test_a_published_file_means_the_methods_scale_and_ours_says_its_own(tiny_folder, tmp_path):
    module = tiny_module(tiny_folder, lora=LoraSettings(rank=4, alpha=4))
    state = adapter_state_dict(module.roles.transformer, EMA)
    torch.save(state, tmp_path / "published.pt")
    assert adapters.read(tmp_path / "published.pt").scale == 2
    assert adapters.read(tmp_path / "published.pt", alpha=12).scale == 3
    write_adapter(state, tmp_path / "ours", module.backbone, module.lora)
    for name in ("generator_ema.pt", "pytorch_lora_weights.safetensors"):
        assert adapters.read(tmp_path / "ours" / name).scale == 1
        with pytest.raises(UserError, match="made with alpha 4, not 8"):
            adapters.read(tmp_path / "ours" / name, alpha=8)
    plain = torch.load(tmp_path / "ours" / "generator_ema.pt", weights_only=True)
    assert plain.keys() == state.keys() and all(torch.equal(plain[key], value) for key, value in state.items())


def test_stage_twos_folder_read_as_a_folder_does_not_bring_the_cold_start_along(tiny_folder, tmp_path):
    """Its diffusers file does hold both, for people who load that alone."""
    module = tiny_module(tiny_folder)
    cold_start, state = random_adapter(2), adapter_state_dict(module.roles.transformer, EMA)
    write_adapter(state, tmp_path, module.backbone, module.lora, beneath=[cold_start])
    layer = "transformer_blocks.0.attn.to_q"
    assert adapters.read(tmp_path).layers[layer].rank == module.lora.rank
    assert adapters.read(tmp_path / "pytorch_lora_weights.safetensors").layers[layer].rank == 2 + module.lora.rank


@pytest.mark.parametrize("alpha", [4, 8])
def test_a_checkpoint_gives_the_role_that_is_asked_for_at_the_runs_own_scale(alpha, tiny_folder, tmp_path):
    module = tiny_module(tiny_folder, lora=LoraSettings(rank=4, alpha=alpha))
    checkpoint = {"state_dict": module.state_dict(), "optimizer_states": []}
    module.on_save_checkpoint(checkpoint)
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path)
    for role, options in ((EMA, {}), (GENERATOR, {"role": GENERATOR})):
        state = adapter_state_dict(module.roles.transformer, role)
        read = adapters.read(path, **options)
        assert read.scale == alpha / 4 and 2 * len(read.layers) == len(state)
        for layer, update in read.layers.items():
            assert torch.equal(update.up, state[f"{layer}.lora_B.default.weight"])
    with pytest.raises(UserError, match="no adapter 'rtdmd'; it has fake_score, generator, generator_ema"):
        adapters.read(path, role="rtdmd")
    convert.convert([str(path)], str(tiny_folder), "diffusers", tmp_path / "out")
    assert_same(adapters.read(tmp_path / "out"), adapters.read(path).with_scale(1.0))


class Code:
    def __reduce__(self):
        return (os.system, ("echo executed",))


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt"])
def test_a_pickle_with_code_in_it_is_refused_in_one_sentence(name, tiny_folder, tmp_path, capfd):
    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Code()}))
    arguments = [
        "--adapters",
        str(tmp_path / name),
        "--base",
        str(tiny_folder),
        "--to",
        "peft",
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(SystemExit) as exit_, readable_errors():
        convert.main(arguments)
    told = capfd.readouterr()
    assert exit_.value.code == 2 and "executed" not in told.out + told.err
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and "nothing else is loaded" in told.err


def published(state: dict, tmp_path) -> str:
    torch.save(state, tmp_path / "file.pt")
    return str(tmp_path / "file.pt")


A, B = torch.zeros(4, 32), torch.zeros(32, 4)
TO_Q = "transformer_blocks.0.attn.to_q"


def pair(layer: str, up: torch.Tensor = B) -> dict:
    return {f"{layer}.lora_A.default.weight": A, f"{layer}.lora_B.default.weight": up}


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (pair("blocks.7.q") | pair("blocks.8.q"), r"no key matches SD3Transformer2DModel.*'blocks\.7\.q'"),
        (pair(TO_Q) | pair("blocks.7.q") | pair("x.y"), r"2 of 3 layers are not in.*: blocks\.7\.q, x\.y$"),
        (pair(TO_Q) | {"some.bias": A}, r"not like some\.bias"),
        ({}, "nothing at all"),
        ({f"{TO_Q}.lora_A.default.weight": A}, r"missing for transformer_blocks\.0\.attn\.to_q"),
        (pair(TO_Q, torch.zeros(32, 3)), "do not go together"),
        (pair(TO_Q, torch.zeros(16, 4)), r"made for a layer of shape \(16, 32\), this base has \(32, 32\)"),
        ({"a": 1}, "not a plain state dict"),
    ],
    ids=["no key", "some keys", "strange key", "empty", "half", "ranks", "another base", "no tensor"],
)
def test_what_does_not_fit_is_refused_by_name(state, wanted, tiny_folder, tmp_path):
    with pytest.raises(UserError, match=wanted):
        convert.convert([published(state, tmp_path)], str(tiny_folder), "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("nowhere.pt", "does not exist"), ("empty", "holds none of"), ("weights.bin", "must end in")],
)
def test_what_is_no_adapter_is_refused(path, wanted, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match=wanted):
        adapters.read(tmp_path / path)


def test_a_rank_that_contradicts_the_shapes_is_refused(tiny_folder, tmp_path):
    write(random_adapter(4), "peft", tmp_path, tiny_folder)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(UserError, match="has rank 4, its configuration says 8"):
        adapters.read(tmp_path)


def test_a_base_of_no_known_family_is_refused(tiny_folder, tmp_path):
    (tmp_path / "base" / "transformer").mkdir(parents=True)
    (tmp_path / "base" / "model_index.json").write_text(
        json.dumps({"_class_name": "OtherPipeline", "transformer": ["diffusers", "X"]})
    )
    with pytest.raises(UserError, match=r"is a OtherPipeline; known are StableDiffusion3Pipeline, FluxPipeline"):
        convert.convert([published(pair(TO_Q), tmp_path)], str(tmp_path / "base"), "peft", tmp_path / "out")


def test_the_skeleton_has_the_shapes_and_no_memory(tiny_folder):
    real = tiny_backbone(tiny_folder).load()
    bare = skeleton(str(tiny_folder))
    assert {k: v.shape for k, v in bare.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
