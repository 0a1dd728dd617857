"""Embeddings on disk: they come back bit for bit, belong to one encoder, and stand in for text encoders in training."""

import multiprocessing
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtdmd_lightning import fit
from rtdmd_lightning.data import embedding_store
from rtdmd_lightning.data.embedding_store import EmbeddingStore
from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.embed import embed, fill
from rtdmd_lightning.models import Flux2Backbone, FluxBackbone
from rtdmd_lightning.models.identity import identity
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.errors import UserError
from tests.support.counting_backbone import CountingBackbone, assert_encodes
from tests.support.tiny import load_checkpoint, tiny_backbone, write_config
from tests.support.tiny_backbones import OPTIONS, save_tiny_flux, save_tiny_flux2
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two blue crosses", "a red circle", ""]


def counting_embedder(cache, **attributes) -> PromptEmbedder:
    backbone = CountingBackbone()
    vars(backbone).update({"embedding_cache": str(cache), "text_encoders": True} | attributes)
    backbone.encoder_identity = lambda: {"name": "counting"}
    return PromptEmbedder(backbone)


def assert_same(one: Conditioning, other: Conditioning) -> None:
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert tensor.dtype == other.tensors()[name].dtype and torch.equal(tensor, other.tensors()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooled", [True, False])
def test_what_is_written_comes_back_bit_for_bit(tmp_path, dtype, pooled):
    store = EmbeddingStore(tmp_path, {})
    row = Conditioning(torch.randn(1, 7, 5).to(dtype), torch.randn(1, 3).to(dtype) if pooled else None)
    assert "ein Bär" not in store
    store.write("ein Bär", row)
    assert "ein Bär" in store and "ein Baer" not in store
    read = store.read("ein Bär")
    assert_same(read, row)
    store.path("ein Bär").write_bytes(bytes(store.path("ein Bär").stat().st_size))
    assert_same(read, row)  # memory of its own, not the file's


def families(tiny_folder, folder) -> dict:
    """A backbone of each family, as a function of its options."""
    save_tiny_flux(folder / "flux", guidance_embeds=True)
    save_tiny_flux2(folder / "flux2", is_distilled=False)
    return {
        "sd3": lambda **options: tiny_backbone(tiny_folder, **options),
        "flux": lambda **options: FluxBackbone(str(folder / "flux"), **OPTIONS, **options),
        "flux2": lambda **options: Flux2Backbone(str(folder / "flux2"), **OPTIONS, **options),
    }


def test_every_family_embeds_the_same_without_text_encoders(tiny_folder, tmp_path):
    """Loaded as ever; with the encoders apart, and autocast on; and, from the cache, with no encoder at all."""
    for name, open_backbone in families(tiny_folder, tmp_path).items():
        cache = str(tmp_path / "cache")
        plain, apart = open_backbone(), open_backbone(embedding_cache=cache)
        plain.load()
        expected = PromptEmbedder(plain)(PROMPTS, CPU)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(PromptEmbedder(apart)(PROMPTS, CPU), expected)
        assert apart.pipeline is None and apart._text_pipeline.vae is None
        assert next(apart._text_pipeline.transformer.parameters()).device.type == "meta", name
        without = open_backbone(embedding_cache=cache, text_encoders=False)
        without.load()
        assert_same(PromptEmbedder(without)(PROMPTS, CPU), expected)
        assert without.pipeline.text_encoder is None and without._text_pipeline is None


def test_the_key_is_all_that_changes_an_embedding(tiny_folder, tmp_path):
    def key(folder=tiny_folder, **options) -> str:
        return EmbeddingStore(tmp_path, tiny_backbone(folder, **options).encoder_identity()).folder.name

    changes = [{"max_sequence_length": 2}, {"dtype": "bfloat16"}, {"use_t5": True}]
    assert len({key(), *(key(**options) for options in changes)}) == 4
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    (copy / "transformer" / "config.json").write_text("{}")
    assert (
        key(copy) == key() == key(resolution=16, gradient_checkpointing=True)
    )  # neither where it is, nor another part
    weights = copy / "text_encoder_2" / "model.safetensors"
    save_file({name: tensor + 1e-6 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert weights.stat().st_size == (tiny_folder / "text_encoder_2" / "model.safetensors").stat().st_size
    assert key(copy) != key()


def test_a_changed_encoder_is_a_miss(tmp_path):
    embedder = counting_embedder(tmp_path)
    embedder(["a"], CPU)
    other = counting_embedder(tmp_path)
    other.store = EmbeddingStore(tmp_path, {"name": "another"})
    other(["a"], CPU)
    again = counting_embedder(tmp_path)
    assert_encodes(again(["a", "bb", "a"], CPU), ["a", "bb", "a"])
    assert (embedder.backbone.calls, other.backbone.calls, again.backbone.calls) == ([["a"]], [["a"]], [["bb"]])


def test_a_hub_model_is_told_by_its_commit(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    with pytest.raises(UserError, match="cannot tell the version of the base model 'someone/model'"):
        identity("someone/model", ["text_encoder"])
    (repository / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "model_index.json").write_text("{}")
        (repository / "refs" / "main").write_text(commit)
        assert identity("someone/model", ["text_encoder"])["commit"] == commit


def weights_after(config, folder, *options: str) -> dict[str, torch.Tensor]:
    fit.main(["--config", str(config), f"--run_dir={folder / 'runs/run'}", *options])
    return load_checkpoint(folder)["state_dict"]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_stage_1_without_text_encoders_is_stage_1_with_them(tmp_path, tiny_folder):
    """Two generator updates: with encoders; with encoders that fill a cache; from that cache alone. Bit for bit."""
    config = write_config(tmp_path, tiny_folder)
    cached = f"--model.backbone.embedding_cache={tmp_path / 'cache'}"
    expected = weights_after(config, tmp_path / "plain")
    assert_equal(weights_after(config, tmp_path / "filling", cached), expected)
    assert_equal(weights_after(config, tmp_path / "without", cached, "--model.backbone.text_encoders=false"), expected)


@pytest.mark.slow
def test_stage_2_without_text_encoders_is_stage_2_with_them(tmp_path, tiny_folder):
    config = write_rtdmd_config(tmp_path, tiny_folder, save_cold_start(tiny_folder, tmp_path / "cold_start"))
    cached = f"--model.backbone.embedding_cache={tmp_path / 'cache'}"
    expected = weights_after(config, tmp_path / "filling", cached)
    assert_equal(weights_after(config, tmp_path / "without", cached, "--model.backbone.text_encoders=false"), expected)


def test_a_missing_prompt_is_named_where_there_is_no_text_encoder(tmp_path):
    counting_embedder(tmp_path)(["a"], CPU)
    embedder = counting_embedder(tmp_path, text_encoders=False)
    assert_encodes(embedder(["a"], CPU), ["a"])
    with pytest.raises(UserError, match=r"lacks the prompt 'bb' .*`rtdmd embed`"):
        embedder(["a", "bb"], CPU)
    with pytest.raises(UserError, match="text_encoders=false needs an embedding_cache"):
        tiny_backbone(tmp_path, text_encoders=False)


def test_the_command_embeds_all_that_a_run_draws(tmp_path, tiny_folder, capsys):
    """Training prompts, those of the evaluation, guidance's empty one, and more; a second time there is nothing to do."""
    config = write_config(tmp_path / "run", tiny_folder)
    for name in ("train", "more"):
        (tmp_path / f"{name}.txt").write_text(f"a red circle\na {name} cross\n")
    options = [
        f"--data.prompts={tmp_path / 'train.txt'}",
        "--model.backbone.text_encoders=false",
        "--trainer.devices=64",
    ]
    arguments = [
        f"--config={config}", f"--options={options}", f"--prompts=['{tmp_path / 'more.txt'}']",
        f"--cache={tmp_path / 'cache'}", "--batch_size=5", "--device=cpu",
    ]  # fmt: skip
    for new in (16, 0):  # 12 are held out, 2 of every tag
        run_command(embed, arguments)
        assert f"{new} of 16 prompts were new" in capsys.readouterr().out
    backbone = tiny_backbone(tiny_folder, embedding_cache=str(tmp_path / "cache"), text_encoders=False)
    conditioning = PromptEmbedder(backbone)(["", "a train cross", "a more cross", "a red circle"], CPU)
    plain = tiny_backbone(tiny_folder)
    expected = PromptEmbedder(plain)(["", "a train cross", "a more cross", "a red circle"], CPU)
    torch.testing.assert_close(
        conditioning.embeds, expected.embeds, rtol=0, atol=1e-5
    )  # another batch, other last bits


def test_the_size_is_told_first_and_a_disk_without_room_is_refused(tmp_path, tiny_folder, monkeypatch, capsys):
    """Of the prompts that are not there yet: a full cache needs no room. Nothing is written or loaded before."""
    (tmp_path / "prompts.txt").write_text("".join(f"a circle {number}\n" for number in range(99)))
    options = '{"dtype": "bfloat16", "resolution": 32, "use_t5": false, "max_sequence_length": 300}'
    arguments = [
        f"--base={tiny_folder}", f"--backbone={options}", f"--prompts=['{tmp_path / 'prompts.txt'}']",
        f"--cache={tmp_path / 'deep/cache'}", "--device=cpu",
    ]  # fmt: skip
    disk = SimpleNamespace(free=1000)
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or disk)
    with pytest.raises(UserError, match=r"GB for 100 prompts, .* GB free: .*--cache"):
        run_command(embed, arguments)
    assert asked == [tmp_path] and not (tmp_path / "deep").exists()
    disk.free = 10**9
    run_command(embed, arguments)
    files = [file.stat().st_size for file in (tmp_path / "deep").rglob("*.safetensors")]
    backbone = tiny_backbone(tiny_folder, dtype="bfloat16", max_sequence_length=300)
    told, written = 100 * PromptEmbedder(backbone).bytes_of_a_prompt(), sum(files)
    assert len(files) == 100 and told < written < told + 100 * 512  # a file begins with a few words on what it holds
    assert f"{told / 1e9:.3f} GB for 100 prompts" in capsys.readouterr().out
    disk.free = 0
    run_command(embed, arguments)
    assert "; 0.000 GB are still to be written" in capsys.readouterr().out


def test_an_interrupted_command_goes_on_and_processes_share_the_work(tmp_path):
    prompts = ["a", "bb", "ccc", "dddd", "eeeee"]
    counting_embedder(tmp_path).add_to_store(["bb"])
    calls = []
    for rank in range(2):
        embedder = counting_embedder(tmp_path)
        fill(embedder, prompts, batch_size=2, rank=rank, world_size=2)
        calls.append(embedder.backbone.calls)
    assert calls == [[["a", "ccc"], ["eeeee"]], [["dddd"]]]
    assert_encodes(counting_embedder(tmp_path, text_encoders=False)(prompts, CPU), prompts)


def _write_again_and_again(store: EmbeddingStore, value: float) -> None:
    for _ in range(10):
        for prompt in ("a", "bb"):
            store.write(prompt, Conditioning(torch.full((1, 500, 500), value)))


@pytest.mark.slow
def test_two_processes_that_write_at_once_do_no_harm(tmp_path):
    """Whoever reads meanwhile gets one process's embedding or the other's, never something between."""
    store = EmbeddingStore(tmp_path, {})
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    writers = [spawn.Process(target=_write_again_and_again, args=(store, value)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers) or not seen:
        seen += [store.read(prompt).embeds for prompt in ("a", "bb") if prompt in store]
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert all(torch.equal(embeds, embeds[:1, :1, :1].expand_as(embeds)) for embeds in seen)
    files = sorted(path.name for path in store.folder.rglob("*") if path.is_file())
    assert files == sorted(["encoder.json", store.path("a").name, store.path("bb").name])


def test_a_write_in_the_middle_of_another(tmp_path, monkeypatch):
    """The first file is written and does not show yet when a second process writes the same prompt, from start to end."""
    store, written = EmbeddingStore(tmp_path, {}), []

    def save_and_let_another_write(tensors, path, metadata):
        save_file(tensors, path, metadata)
        assert len(written) or "a" not in store
        written.append(path)
        if len(written) == 1:
            store.write("a", Conditioning(torch.ones(1, 7, 5)))
            assert torch.equal(store.read("a").embeds, torch.ones(1, 7, 5))

    monkeypatch.setattr(embedding_store, "save_file", save_and_let_another_write)
    store.write("a", Conditioning(torch.zeros(1, 7, 5)))
    assert len(set(written)) == 2 and not any(path.exists() for path in written)
    assert torch.equal(store.read("a").embeds, torch.zeros(1, 7, 5))


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"garbage" * 99])
def test_a_damaged_file_is_told_in_a_sentence(tmp_path, damage):
    store = EmbeddingStore(tmp_path, {})
    store.write("a", Conditioning(torch.randn(1, 7, 5)))
    path = store.path("a")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"cached embedding .*\.safetensors of 'a' is damaged .* delete the file"):
        store.read("a")
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="of 'a' is damaged"):
        store.read("a")


ROW = {"embeds": torch.randn(1, 7, 5), "pooled": torch.randn(1, 3)}


@pytest.mark.parametrize(
    "odd",
    [
        {"embeds": torch.randn(1, 7, 4)},
        {"embeds": torch.randn(1, 6, 5)},
        {"embeds": torch.randn(2, 7, 5)},
        {"embeds": torch.randn(7, 5)},
        {"embeds": torch.randn(1, 7, 5).bfloat16()},
        {"embeds": torch.randint(9, (1, 7, 5))},
        {"pooled": torch.randn(1, 4)},
        {"pooled": torch.randn(3)},
    ],
)
def test_an_embedding_that_is_not_like_the_others_is_told(tmp_path, odd):
    """Another encoder's, or none at all: in a batch it would end in an error without a name, or be multiplied as it is."""
    store = EmbeddingStore(tmp_path, {})
    store.write("a", Conditioning(**ROW))
    store.write("b", Conditioning(**ROW))
    save_file(ROW | odd, store.path("b"))
    reader = EmbeddingStore(tmp_path, {})
    assert_same(reader.read("a"), Conditioning(**ROW))
    with pytest.raises(UserError, match="of 'b' is damaged"):
        reader.read("b")


def test_whole_numbers_are_no_embedding_even_alone(tmp_path):
    store = EmbeddingStore(tmp_path, {})
    store.path("a").parent.mkdir(parents=True)
    save_file({"embeds": torch.ones(1, 7, 5, dtype=torch.int32)}, store.path("a"))
    with pytest.raises(UserError, match="int32"):
        store.read("a")


def test_a_cache_that_is_wrong_throughout_is_told_by_what_the_backbone_wants(tmp_path):
    """There is no other embedding that it could differ from."""
    embedder = counting_embedder(tmp_path)
    embedder.store.path("a").parent.mkdir(parents=True)
    save_file({"embeds": torch.zeros(1, 3, 4), "pooled": torch.zeros(1, 5)}, embedder.store.path("a"))
    with pytest.raises(UserError, match=r"of 'a' is damaged .*\[1, 3, 4\].* not .*\[1, 3, 2\]"):
        embedder(["a"], CPU)
