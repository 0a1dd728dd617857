"""`convert --inspect`: its numbers against torch's own, the models that it recognises, and its exit status."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from rtdmd_lightning import convert
from rtdmd_lightning.models.published import published
from rtdmd_lightning.roles import Adapter, LayerUpdate, writing
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.measures import by_kind, kind_of, told_by_a, update_norm
from rtdmd_lightning.utils.errors import readable_errors
from tests.support.random_adapters import random_adapter
from tests.support.tiny import tiny_module

FIRST = "transformer_blocks.0.attn.to_q"


def inspect(capsys, path, *options: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    status = 0
    try:
        with readable_errors():
            convert.main(["--inspect", str(path), *options])
    except SystemExit as exit_:
        status = exit_.code
    told = capsys.readouterr()
    return status, told.out, told.err


def fact(printed: str, name: str) -> list[str]:
    """What the lines of this name say, one for each adapter."""
    return [line.removeprefix(name).strip() for line in printed.splitlines() if line.startswith(f"{name} ")]


def adapter_of(name: str, *, seed: int = 0, std: float = 1.0) -> Adapter:
    """A rank-1 adapter of every LoRA target of a published model."""
    model, generator = published(name), torch.Generator().manual_seed(seed)
    shapes = {
        path: module.weight.shape
        for path, module in model.meta_transformer().named_modules()
        if path.endswith(tuple(model.family.lora_targets)) and hasattr(module, "weight") and ".attn." in path
    }
    layers = {
        path: LayerUpdate(std * torch.randn(1, inputs, generator=generator), torch.zeros(outputs, 1), 2.0)
        for path, (outputs, inputs) in shapes.items()
    }
    return Adapter(layers, name)


# The numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.5, -0.5])
def test_the_norm_of_an_update_is_that_of_the_whole_product(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(3, 40, generator=generator).to(dtype)
    update = LayerUpdate(down, torch.randn(50, 3, generator=generator).to(dtype), scale)
    assert update_norm(update) == pytest.approx(update.delta().double().norm().item(), rel=1e-6)
    assert update_norm(LayerUpdate(update.down, torch.zeros(50, 3), scale)) == 0


def test_a_norm_that_cancels_is_small_not_nan():
    """B @ A of two rows that undo each other."""
    row, column = torch.randn(1, 40), torch.randn(50, 1)
    update = LayerUpdate(torch.cat([row, row]), torch.cat([column, -column], dim=1), 1.0)
    assert update_norm(update) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("transformer_blocks.11.attn.to_out.0", "transformer_blocks.*.attn.to_out.0"),
        ("transformer_blocks.3.ff.net.2", "transformer_blocks.*.ff.net.2"),
        ("single_transformer_blocks.3.attn.to_out", "single_transformer_blocks.*.attn.to_out"),
        ("proj_out", "proj_out"),
    ],
)
def test_the_kind_of_a_layer_is_its_path_without_the_block(path, kind):
    assert kind_of(path) == kind


def test_the_numbers_of_a_kind_are_means_over_its_layers():
    adapter = random_adapter(4, scale=1.5)
    kinds = by_kind(adapter)
    assert sum(kind.layers for kind in kinds.values()) == len(adapter.layers)
    for target in ("to_q", "add_k_proj", "to_out.0"):
        kind = kinds[f"transformer_blocks.*.attn.{target}"]
        updates = [adapter.layers[f"transformer_blocks.{block}.attn.{target}"] for block in range(3)]
        stds = torch.stack([update.down.std(correction=0) for update in updates])
        norms = torch.stack([update.delta().norm() for update in updates])
        assert (kind.layers, kind.shapes) == (3, [(32, 32)])
        assert kind.std == pytest.approx(stds.mean().item(), rel=1e-5)
        assert kind.norm == pytest.approx(norms.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("rank", "std", "told"),
    [
        (32, 1 / 32, "looks like a cold start's"),
        (32, 1.7 / 32, "looks like a cold start's"),
        (32, 0.95, "looks like that of the authors' stage 2"),
        (32, 0.2, "looks neither"),
        (32, 5, "looks neither"),
        (4, 0.25, "does not tell"),
        (32, float("nan"), "not finite"),
    ],
)
def test_the_stage_that_a_looks_like(rank, std, told):
    down = std * torch.randn(rank, 512, generator=torch.Generator().manual_seed(0))
    assert told in told_by_a(Adapter({FIRST: LayerUpdate(down, torch.zeros(8, rank), 2.0)}, "a test"))


# The models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sd3_medium", "stable-diffusion-3-medium-diffusers: all 382 keys (191 of its 191 LoRA targets)"),
        ("sd35_medium", "stabilityai/stable-diffusion-3.5-medium: all 382 keys (191 of its 191 LoRA targets)"),
        ("flux1_dev", "black-forest-labs/FLUX.1-dev: all 532 keys (266 of its 266 LoRA targets)"),
        ("flux2_klein_4b", "FLUX.2-klein-4B: all 160 keys (80 of its 80 LoRA targets)"),
        ("flux2_klein_9b", "FLUX.2-klein-9B: all 224 keys (112 of its 112 LoRA targets)"),
    ],
)
def test_a_published_models_adapter_is_recognised(name, expected, tmp_path, capsys):
    writing.write_published(adapter_of(name), tmp_path)
    status, printed, _ = inspect(capsys, tmp_path / "generator_ema.pt")
    models = fact(printed, "model") + fact(printed, "or")
    assert status == 0 and any(model.endswith(expected) for model in models)
    # SD3 Medium has SD3.5 Medium's attention; no other two have the same layers.
    assert len(models) == (2 if name.startswith("sd3") else 1)


def test_a_layer_that_only_one_of_them_has_tells_sd3_from_sd35(tmp_path, capsys):
    """The second attention of SD3.5 Medium, which METHOD does not adapt."""
    adapter = adapter_of("sd35_medium")
    layers = adapter.layers | {"transformer_blocks.0.attn2.to_q": adapter.layers[FIRST]}
    writing.write_published(Adapter(layers, "with attn2"), tmp_path)
    status, printed, _ = inspect(capsys, tmp_path)
    assert status == 0 and not fact(printed, "or")
    assert fact(printed, "model") == [
        "stabilityai/stable-diffusion-3.5-medium: all 384 keys (191 of its 191 LoRA targets; other layers: 1)"
    ]


def test_an_adapter_of_no_published_model_says_so_and_fits_the_base_that_is_named(tiny_folder, tmp_path, capsys):
    writing.write_published(random_adapter(4), tmp_path)
    status, printed, _ = inspect(capsys, tmp_path)
    assert status == 1 and "--base" in fact(printed, "model")[0] and "no published model" in fact(printed, "model")[0]
    status, printed, _ = inspect(capsys, tmp_path, f"--base={tiny_folder}")
    # SD3's targets in three blocks, the last of which has no to_add_out.
    assert status == 0 and fact(printed, "model") == [f"{tiny_folder}: all 18 keys (9 of its 23 LoRA targets)"]


def test_a_base_that_does_not_fit_is_told_by_layer(tiny_folder, tmp_path, capsys):
    adapter = adapter_of("sd35_medium")
    writing.write_published(adapter, tmp_path)
    status, printed, _ = inspect(capsys, tmp_path, "--base", str(tiny_folder))
    (told,) = fact(printed, "model")
    assert status == 1 and f"{tiny_folder}: 0 of 382 keys" in told
    assert f"of another shape is {FIRST} and 22 more" in told and "does not have transformer_blocks." in told


def test_the_nearest_of_the_published_models_is_named_where_some_keys_fit(tmp_path, capsys):
    adapter = adapter_of("flux1_dev")
    layers = adapter.layers | {"blocks.7.q": adapter.layers[FIRST]}
    writing.write_published(Adapter(layers, "one more"), tmp_path)
    status, printed, _ = inspect(capsys, tmp_path)
    assert status == 1
    assert "FLUX.1-dev: 532 of 534 keys (it does not have blocks.7.q)" in fact(printed, "model")[0]


# The command ----------------------------------------------------------------------------------------------------------


def test_all_that_is_printed_of_a_file(tiny_folder, tmp_path, capsys):
    adapter = random_adapter(4, scale=1.5)
    state = adapter.state_dict("module.{path}.lora_{half}.default.weight")
    torch.save(state, tmp_path / "ddp.pt")
    status, printed, _ = inspect(capsys, tmp_path / "ddp.pt", "--base", str(tiny_folder))
    assert status == 0
    assert fact(printed, "file") == [str(tmp_path / "ddp.pt")]
    assert fact(printed, "keys") == [f"18, such as module.{FIRST}.lora_A.default.weight"]
    assert fact(printed, "parameters") == [f"{9 * 4 * (32 + 32):,}, torch.float32"]
    assert fact(printed, "rank") == ["4"] and fact(printed, "values") == ["all finite"]
    assert fact(printed, "alpha")[0].startswith("8, assumed")
    row = next(line for line in printed.splitlines() if "*.attn.to_q" in line)
    updates = [adapter.layers[f"transformer_blocks.{block}.attn.to_q"] for block in range(3)]
    std = sum(update.down.std(correction=0).item() for update in updates) / 3
    norm = sum((2 * update.up @ update.down).norm().item() for update in updates) / 3  # the scale that is assumed
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["3", "32", "32", f"{std:.4g}", f"{norm:.4g}"]


@pytest.mark.parametrize(("to", "alpha"), [("published", 6), ("peft", 6), ("diffusers", 4)])
def test_every_format_is_told_with_the_alpha_that_it_holds(to, alpha, tiny_folder, tmp_path, capsys):
    adapter = random_adapter(4, scale=1.5)
    if to == "published":
        writing.write_published(adapter, tmp_path)
    elif to == "peft":
        writing.write_peft(adapter, tmp_path, str(tiny_folder))
    else:
        writing.write_diffusers(adapter, tmp_path, StableDiffusion3Pipeline)
    status, printed, _ = inspect(capsys, tmp_path, "--base", str(tiny_folder))
    assert status == 0 and fact(printed, "alpha")[0].startswith(f"{alpha}, known from")
    assert to in fact(printed, "format")[0].lower()


def test_every_role_of_a_checkpoint_is_told(tiny_folder, tmp_path, capsys):
    module = tiny_module(tiny_folder, lora=LoraSettings(rank=4, alpha=4))
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    status, printed, _ = inspect(capsys, tmp_path / "last.ckpt", "--base", str(tiny_folder))
    assert status == 0
    roles = ["fake_score", "generator", "generator_ema"]
    assert fact(printed, "file") == [f"{tmp_path / 'last.ckpt'} ({role})" for role in roles]
    assert fact(printed, "keys") == [f"46, such as {FIRST}.lora_A.{role}.weight" for role in roles]
    assert [alpha.split(",")[0] for alpha in fact(printed, "alpha")] == ["4"] * 3


def test_ranks_and_alphas_that_differ_are_all_told(tiny_folder, tmp_path, capsys):
    layers = random_adapter(4).layers | random_adapter(2, scale=1.0, layers=("to_v",)).layers
    writing.write_peft(Adapter(layers, "mixed"), tmp_path, str(tiny_folder))
    _, printed, _ = inspect(capsys, tmp_path, "--base", str(tiny_folder))
    assert sorted(fact(printed, "rank")[0].split(", ")) == ["2", "4"]
    assert {"8", "2"} <= set(fact(printed, "alpha")[0].replace(",", "").split())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_told_with_their_key_and_are_no_error(bad, tiny_folder, tmp_path, capsys):
    state = random_adapter(4).state_dict()
    key = "transformer_blocks.1.attn.add_k_proj.lora_B.default.weight"
    state[key][3, :2] = bad
    torch.save(state, tmp_path / "a.pt")
    status, printed, _ = inspect(capsys, tmp_path / "a.pt", "--base", str(tiny_folder))
    assert status == 0
    assert fact(printed, "values") == [f"2 are NaN or infinite, in 1 of 18 keys, the first {key}"]


def test_what_is_no_adapter_is_an_error_of_one_sentence(tiny_folder, tmp_path, capsys):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    whole = tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    for path, wanted in (
        (tmp_path / "weights.pt", "conv.weight"),
        (tmp_path / "empty.ckpt", "has no adapter"),
        (tmp_path / "nowhere.pt", "does not exist"),
        (whole, "more"),
    ):
        status, printed, told = inspect(capsys, path)
        assert status == 2 and not printed and wanted in told and told.count("\n") == 1 and len(told) < 1000
