"""The result of a run: its format, its reader in stock diffusers, and that it is whole or absent."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from rtdmd_lightning.callbacks import ExportGenerator
from rtdmd_lightning.callbacks.export import write_adapter
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.roles import read, stack
from rtdmd_lightning.roles.contents import load_pt
from rtdmd_lightning.roles.lora import LoraSettings, adapter_parameters, adapter_state_dict
from rtdmd_lightning.roles.reading import from_state_dict
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from tests.support.tiny import tiny_backbone, tiny_module
from tests.support.tiny_rtdmd import save_cold_start, tiny_rtdmd_module


def fake_trainer(folder, *, rank=0, step=4):
    return SimpleNamespace(default_root_dir=str(folder), is_global_zero=rank == 0, global_step=step)


def export(module, folder):
    write_adapter(adapter_state_dict(module.roles.transformer, EMA), folder, module.backbone, module.lora)


def test_the_plain_file_holds_the_emas_adapter_under_the_published_keys(tiny_folder, tmp_path):
    module = tiny_module(tiny_folder)
    ExportGenerator("cold_start").on_train_end(fake_trainer(tmp_path), module)
    state = torch.load(tmp_path / "cold_start/generator_ema.pt", weights_only=True)
    layers = {key.rpartition(".lora_")[0] for key in state}
    assert state.keys() == {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}
    assert len(layers) == 3 * 8 - 1 and "transformer_blocks.1.attn.to_out.0" in layers
    average = adapter_parameters(module.roles.transformer, EMA)
    for key, tensor in state.items():
        assert torch.equal(tensor, average[key.replace(".default.", f".{EMA}.")]) and not tensor.requires_grad
    weights = torch.cat([tensor.flatten() for tensor in state.values()])
    trained = torch.cat(
        [tensor.flatten() for tensor in adapter_parameters(module.roles.transformer, GENERATOR).values()]
    )
    assert not torch.equal(weights, trained)


@pytest.mark.parametrize("alpha", [2, 4, 12])
def test_stock_diffusers_with_the_file_computes_what_the_ema_role_does(tiny_folder, tmp_path, alpha):
    """At scales alpha / rank of 0.5, 1 and 3: a file without its alpha would be read at scale 1."""
    module = tiny_module(tiny_folder, lora=LoraSettings(rank=4, alpha=alpha))
    export(module, tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_folder, text_encoder_3=None, tokenizer_3=None)
    latents = torch.randn(2, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(2))
    conditioning = module.embed(["a red circle", "two crosses"], torch.device("cpu"))

    def stock():
        with torch.no_grad():
            return pipeline.transformer(
                hidden_states=latents,
                timestep=torch.full((2,), 700.0),
                encoder_hidden_states=conditioning.embeds,
                pooled_projections=conditioning.pooled,
                return_dict=False,
            )[0]

    with torch.no_grad():
        ours, teacher = (module.roles.velocity(role, latents, 0.7, conditioning) for role in (EMA, "teacher"))
    torch.testing.assert_close(stock(), teacher, rtol=1e-5, atol=1e-5)
    pipeline.load_lora_weights(tmp_path)
    torch.testing.assert_close(stock(), ours, rtol=1e-5, atol=1e-5)
    assert (ours - teacher).abs().max() > 1e-2


def test_the_fake_scores_adapter_lies_beside_it(tiny_folder, tmp_path):
    module = tiny_module(tiny_folder)
    ExportGenerator("cold_start").on_train_end(fake_trainer(tmp_path), module)
    state, expected = (
        load_pt(tmp_path / "cold_start/fake_score.pt"),
        adapter_state_dict(module.roles.transformer, FAKE_SCORE),
    )
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_diffusers_file_is_of_the_cold_start_that_was_trained_on(tiny_folder, tmp_path):
    """Whatever has become of its files."""
    folder = save_cold_start(tiny_folder, tmp_path / "cold_start")
    module = tiny_rtdmd_module(tiny_folder, folder)
    expected = stack([read(folder), from_state_dict(adapter_state_dict(module.roles.transformer, EMA), 2.0, EMA)])
    shutil.rmtree(folder)
    ExportGenerator("rtdmd").on_train_end(fake_trainer(tmp_path), module)
    found = read(tmp_path / "rtdmd/pytorch_lora_weights.safetensors")
    assert found.layers.keys() == expected.layers.keys()
    for layer, update in expected.layers.items():
        torch.testing.assert_close(found.layers[layer].delta(), update.delta())


def test_a_module_that_starts_from_the_plain_file_is_the_exported_one(tiny_folder, tmp_path):
    module = tiny_module(tiny_folder)
    export(module, tmp_path)
    started = ACDMDModule(
        tiny_backbone(tiny_folder),
        batch_size=4,
        guidance_scale=(3.0, 3.0),
        lora=module.lora,
        initial_adapter=str(tmp_path / "generator_ema.pt"),
    )
    started.configure_model()
    prompts, images = ["a red circle"], []
    for one, role in ((module, EMA), (started, EMA), (started, GENERATOR), (module, GENERATOR)):
        images.append(one.generate(prompts, [0], seed=0, role=role))
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[3])


@pytest.mark.parametrize("interrupted", ["torch.save", "save_lora_weights"])
def test_an_interrupted_write_leaves_the_previous_result(tiny_folder, tmp_path, monkeypatch, interrupted):
    module = tiny_module(tiny_folder)
    export(module, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"generator_ema.pt", "pytorch_lora_weights.safetensors"}

    def half(*arguments, weight_name="", **options):
        """As much of a file as was written when the power went."""
        target = Path(arguments[0]) / weight_name if weight_name else Path(arguments[1].name)
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    place = torch if interrupted == "torch.save" else StableDiffusion3Pipeline
    monkeypatch.setattr(place, interrupted.removeprefix("torch."), half)
    with pytest.raises(KeyboardInterrupt):
        export(module, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    export(module, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before.keys()  # nothing half-written is left


def test_it_writes_every_n_updates_and_at_the_end_on_one_rank_only(tiny_folder, tmp_path):
    module, result = tiny_module(tiny_folder), tmp_path / "here/generator_ema.pt"
    export_every_4 = ExportGenerator("here", every_n_updates=4)
    export_every_4.on_train_batch_end(fake_trainer(tmp_path, step=3), module, None, None, 0)
    assert not result.exists()
    export_every_4.on_train_batch_end(fake_trainer(tmp_path, rank=1), module, None, None, 0)
    assert not result.exists()
    export_every_4.on_train_batch_end(fake_trainer(tmp_path), module, None, None, 0)
    assert result.exists()
    result.unlink()
    at_the_end_only = ExportGenerator("here")
    at_the_end_only.on_train_batch_end(fake_trainer(tmp_path), module, None, None, 0)
    assert not result.exists()
    at_the_end_only.on_train_end(fake_trainer(tmp_path), module)
    assert result.exists()
