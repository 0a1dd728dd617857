"""How many tokens of text condition a model: METHOD section 0.1's, told by its family alone, and checked."""

import json

import pytest
import torch
import yaml
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

from rtdmd_lightning import fit, sample
from rtdmd_lightning.data.embeddings import PromptEmbedder
from rtdmd_lightning.embed import embed
from rtdmd_lightning.models import Flux2Backbone, FluxBackbone, SD3Backbone
from rtdmd_lightning.models.families import FAMILIES, open_backbone
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import UserError, readable_errors
from tests.support.roles import teacher_velocity
from tests.support.tiny import REPOSITORY, write_config
from tests.support.tiny_backbones import module_of

# A tiny SD3, its CLIPs of 77 tokens, and what the authors' implementation makes of five prompts with it.
UPDATES = REPOSITORY / "tests/data/golden/updates"
MODEL = str(UPDATES / "model")
CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a photo of a blue square", "two green triangles", "a yellow circle above a red square", ""]
LARGE_MODELS = ("sd3m", "sd35m", "flux1_dev", "flux2_klein_4b", "flux2_klein_9b")


@pytest.fixture
def seen(monkeypatch):
    """The shapes of the text that any SD3 transformer is given, in order."""
    shapes = []
    forward = SD3Transformer2DModel.forward

    def counting(self, *inputs, encoder_hidden_states, **options):
        shapes.append(tuple(encoder_hidden_states.shape))
        return forward(self, *inputs, encoder_hidden_states=encoder_hidden_states, **options)

    monkeypatch.setattr(SD3Transformer2DModel, "forward", counting)
    return shapes


def test_sd3s_conditioning_is_the_authors():
    """77 CLIP tokens and 128 of T5, padding unmasked, for the empty prompt too."""
    backbone = SD3Backbone(MODEL, 16, dtype="float32")
    backbone.load()
    expected = load_file(UPDATES / "prompts.safetensors")
    found = backbone.encode_prompts(PROMPTS)
    assert found.embeds.shape == (5, 205, 32)
    torch.testing.assert_close(found.embeds, expected["embeds"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooled, expected["pooled"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "tokens"), [({}, 205), ({"max_sequence_length": 256}, 333)])
def test_sample_conditions_on_the_familys_tokens_unless_told_otherwise(options, tokens, seen, tmp_path):
    """Both branches of CFG: the empty prompt's padding counts as much."""
    backbone = json.dumps({"dtype": "float32"} | options)
    arguments = [f"--base={MODEL}", "--prompt", "a red circle", f"--backbone={backbone}", "--steps=2", "--device=cpu"]
    sample.main([*arguments, "--guidance_scale=3", f"--out={tmp_path}"])
    assert seen == [(2, tokens, 32)] * 2
    recorded = json.loads((tmp_path / sample.RECORD).read_text())["options"]
    assert recorded["backbone"] == {"dtype": "float32", "max_sequence_length": tokens - 77}


def test_training_conditions_on_the_familys_tokens(seen):
    module = module_of(SD3Backbone(MODEL, 16, dtype="float32"))
    latents = torch.zeros(2, *module.backbone.latent_shape())
    teacher_velocity(module, latents, 0.5, module.embed(PROMPTS[:2], CPU), 4.5)
    assert seen == [(4, 205, 32)]


def test_a_cache_holds_the_familys_tokens_and_tells_lengths_apart(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    cache = str(tmp_path / "cache")

    def cached(**options) -> tuple[int, ...]:
        """Of two prompts, which can come from the cache only."""
        reading = {"dtype": "float32", "embedding_cache": cache, "text_encoders": False} | options
        return PromptEmbedder(open_backbone(MODEL, None, reading))(["a red circle", ""], CPU).embeds.shape

    filling = {"base": MODEL, "prompts": [str(tmp_path / "prompts.txt")], "cache": cache, "device": "cpu"}
    embed(**filling, backbone={"dtype": "float32", "max_sequence_length": 256})
    assert cached(max_sequence_length=256) == (2, 333, 32)
    with pytest.raises(UserError, match="lacks the prompt"):
        cached()
    embed(**filling, backbone={"dtype": "float32"})
    assert cached() == (2, 205, 32)


def test_the_number_is_the_familys_and_stands_in_no_config_of_a_published_model():
    assert SD3Backbone("a/b", 512).max_sequence_length == 128
    assert FluxBackbone("a/b", 512).max_sequence_length == Flux2Backbone("a/b", 512).max_sequence_length == 512
    for folder in ("cold_start", "rtdmd", "evaluate"):
        for name in LARGE_MODELS:
            config = compose(REPOSITORY / "configs" / folder / f"{name}.yaml")
            assert "max_sequence_length" not in yaml.safe_dump(config), (folder, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [0, 513])
def test_a_length_beyond_the_encoders_is_refused_before_anything_is_read(family, tokens):
    family("no/such-model", 512, max_sequence_length=512)
    with pytest.raises(UserError, match=f"max_sequence_length .* {tokens}$"):
        family("no/such-model", 512, max_sequence_length=tokens)


def test_commands_say_so_in_one_sentence(tiny_folder, tmp_path, capsys):
    sampling = [
        f"--base={tiny_folder}",
        "--prompt=a",
        '--backbone={"max_sequence_length": 513}',
        f"--out={tmp_path / 'out'}",
    ]
    fitting = [f"--config={write_config(tmp_path, tiny_folder)}", "--model.backbone.max_sequence_length=513"]
    for command, arguments in ((sample.main, sampling), (fit.main, fitting)):
        with pytest.raises(SystemExit), readable_errors():
            command(arguments)
        sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1 and "max_sequence_length" in sentences[0] and len(sentences[0]) < 200
    assert not (tmp_path / "out").exists()
