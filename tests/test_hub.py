"""Publishing and fetching through the real client, against a hub on loopback."""

import json
import os
import re
import shlex
import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from rtdmd_lightning import fit, hub
from rtdmd_lightning import roles as adapters
from rtdmd_lightning.callbacks.export import write_adapter
from rtdmd_lightning.publishing.model_card import Result, model_card
from rtdmd_lightning.roles.lora import adapter_state_dict
from rtdmd_lightning.roles.roles import EMA, GENERATOR
from rtdmd_lightning.utils.errors import UserError
from tests.support.fake_hub import TOKEN, fake_hub
from tests.support.tiny import REPOSITORY, tiny_module, write_config
from tests.support.tiny_backbones import save_tiny_flux

NAME = "someone/tiny-rtdmd"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # The client's other protocol for large files talks to servers that no endpoint setting reaches.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub() as server:
        yield server


@pytest.fixture
def stages(tiny_folder, tmp_path):
    """The folders of two stages and the second one's run, as training leaves them."""
    module = tiny_module(tiny_folder)
    for stage, role in (("cold_start", GENERATOR), ("rtdmd", EMA)):
        folder = tmp_path / "runs" / stage
        write_adapter(adapter_state_dict(module.roles.transformer, role), folder, module.backbone, module.lora)
    run = tmp_path / "runs"
    config = yaml.safe_load(write_config(tmp_path / "c", tiny_folder).read_text())
    config["model"]["class_path"] = "rtdmd_lightning.modules.ACDMDModule"
    config["model"]["init_args"]["sampler"] = {"steps": [1000, 750, 500, 250], "eta": 0.9, "draw_eta": None}
    (run / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 0} | config))
    rows = [
        {"step": 2, "eval/shapes": 0.25},
        {"step": 4, "training_seconds": 9.0, "eval/shapes": 0.5, "eval_by_tag/shapes/color": 0.75},
    ]
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(run / "cold_start"), str(run / "rtdmd")], run


def push(server, stages, **options) -> str:
    folders, run = stages
    return hub.push(folders, run, NAME, **{"endpoint": server.endpoint, "token": TOKEN} | options)


def test_what_is_pushed_comes_back(server, stages, tmp_path):
    commit = push(server, stages, private=True)
    assert commit.startswith(f"{server.endpoint}/{NAME}/commit/") and server.private == {NAME}
    assert set(server.repositories[NAME]) == {
        "README.md", "METHOD.md", "result.json", "recipe.yaml", "pytorch_lora_weights.safetensors",
        "cold_start/generator_ema.pt", "rtdmd/generator_ema.pt", "scheduler/scheduling_cps.py",
    }  # fmt: skip
    assert set(server.uploaded_as_objects) == {
        path for path in server.repositories[NAME] if path.endswith(("pt", "rs"))
    }
    fetched = hub.pull(NAME, tmp_path / "out", endpoint=server.endpoint, token=TOKEN)
    assert fetched == [str(tmp_path / "out" / stage) for stage in ("cold_start", "rtdmd")]
    originals = [adapters.read(path) for path in stages[0]]
    for path, original in zip(fetched, originals, strict=True):
        read = adapters.read(path)
        assert read.layers.keys() == original.layers.keys() and read.scale == original.scale
        assert all(torch.equal(read.layers[layer].up, update.up) for layer, update in original.layers.items())
    whole = adapters.read(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    for layer, update in adapters.stack(originals).layers.items():
        torch.testing.assert_close(whole.layers[layer].delta(), update.delta())


def test_the_card_recommends_what_images_were_drawn_with(server, stages):
    path = stages[1] / "config.yaml"
    path.write_text(path.read_text().replace("draw_eta: null", "draw_eta: 0.7"))
    push(server, stages)
    assert "| eta of the CPS sampler | 0.7 |" in server.repositories[NAME]["README.md"].decode()


def test_the_card_tells_base_recipe_scores_and_use(server, stages, tiny_folder):
    push(server, stages, base="stabilityai/stable-diffusion-3.5-medium")
    card = ModelCard(server.repositories[NAME]["README.md"].decode())
    assert card.data.base_model == "stabilityai/stable-diffusion-3.5-medium"
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    assert {(result.metric_type, result.metric_value) for result in card.data.eval_results} == {
        ("shapes", 0.5),
        ("shapes/color", 0.75),
    }
    text = card.text
    for told in (
        "`cold_start` (rank 4) → `rtdmd` (rank 4)",
        "| raw timesteps | 1000, 750, 500, 250 |",
        "| eta of the CPS sampler | 0.9 |",
        "| its weights in training | float32 |",
        "after 4 generator updates",
        "| shapes/color | 0.7500 |",
        f'pipe.load_lora_weights("{NAME}")',
        'StableDiffusion3Pipeline.from_pretrained("stabilityai/stable-diffusion-3.5-medium"',
        "    num_inference_steps=4,\n    guidance_scale=1.0,\n    max_sequence_length=1,\n    height=32,",
        "`LoraLoaderModelOnly`, 4 steps, CFG 1,",
        "--adapters tiny-rtdmd/cold_start tiny-rtdmd/rtdmd",
        "learning_rate: 0.01",
    ):
        assert told in text, told
    assert "run_dir" not in text  # the trainer's part of the configuration is about one machine
    options = '--backbone \'{"dtype": "float32", "max_sequence_length": 1, "use_t5": false}\''
    assert f"--base stabilityai/stable-diffusion-3.5-medium {options}" in text
    compile(text.split("```python\n")[1].split("```")[0], "the card's example", "exec")


@pytest.mark.slow
def test_the_cards_example_runs_as_it_stands_where_the_package_is_not_installed(server, stages, tmp_path):
    """Weights and sampler come from the hub."""
    push(server, stages)
    example = server.repositories[NAME]["README.md"].decode().split("```python\n")[1].split("```")[0]
    script = (
        f"import sys\nsys.modules['rtdmd_lightning'] = None\n{example}\nimage.save('image.png')\nprint(pipe.scheduler)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HF_ENDPOINT": server.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr
    assert "CPSScheduler" in finished.stdout and '"eta": 0.9' in finished.stdout
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (32, 32)


def test_the_card_tells_of_a_quantised_base_and_draws_on_a_plain_one(server, stages):
    path = stages[1] / "config.yaml"
    path.write_text(path.read_text().replace("use_t5: false", "use_t5: false\n        quantization: nf4"))
    push(server, stages)
    text = server.repositories[NAME]["README.md"].decode()
    assert "| its weights in training | float32, its blocks' linear layers quantised to nf4 |" in text
    assert "quantization" not in text.split("rtdmd sample")[1].split("## Scores")[0]


def test_the_card_links_to_the_equations_beside_it(server, stages, tmp_path):
    """Wherever the published folder is: on the hub, and where it was fetched to."""
    push(server, stages)
    hub.pull(NAME, tmp_path / "out", endpoint=server.endpoint, token=TOKEN)
    links = re.findall(r"\[METHOD\]\(([^)]+)\)", (tmp_path / "out" / "README.md").read_text())
    equations = [(tmp_path / "out" / link).read_text() for link in links]
    assert len(equations) == 1 and "## 3. Stage 1: AC-DMD" in equations[0]
    # Links into the repository lead nowhere there: their texts are left, and every other line is as it was.
    lines = (REPOSITORY / "rtdmd_lightning/method/README.md").read_text().splitlines()
    changed = [(old, new) for old, new in zip(lines, equations[0].splitlines(), strict=True) if old != new]
    assert [old for old, _ in changed] == [line for line in lines if "](../" in line]
    assert all("](" not in new and re.search(r"\w+/README\.md|published\.json", new) for _, new in changed)


@pytest.mark.parametrize(
    ("config", "option", "tokens"),
    [
        ("sd35m", [], 128),
        ("sd35m", ["--model.backbone.max_sequence_length=256"], 256),
        ("flux1_dev", [], 512),
    ],
)
def test_the_pipeline_is_called_with_the_text_tokens_of_the_run(config, option, tokens, monkeypatch):
    """From the configuration that a run of a shipped config writes down."""
    monkeypatch.chdir(REPOSITORY)
    anywhere = ["--data.prompts=shapes:train", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    run = fit.parse([f"--config=configs/cold_start/{config}.yaml", *anywhere, *option])
    written = yaml.safe_load(run.parser.dump(run.config, skip_check=True))
    text = model_card(Result("a/base", {}, "Pipeline", 1.0, written, {}), NAME).text
    assert f"    guidance_scale=1.0,\n    max_sequence_length={tokens},\n" in text
    assert f'"max_sequence_length": {tokens}' in text.split("rtdmd sample")[1]  # the command's --backbone


@pytest.mark.parametrize(("has_input", "option", "scale"), [(True, 1.0, 1.0), (True, 2.5, 2.5), (False, 2.5, 1.0)])
def test_a_flux_student_is_called_with_the_guidance_input_of_its_training(has_input, option, scale, stages, tmp_path):
    save_tiny_flux(tmp_path / "flux", guidance_embeds=has_input)
    halves = {"A": torch.randn(2, 32), "B": torch.randn(32, 2)}
    layer = "transformer_blocks.0.attn.to_q"
    (tmp_path / "student").mkdir()
    torch.save(
        {f"{layer}.lora_{half}.default.weight": matrix for half, matrix in halves.items()},
        tmp_path / "student" / "generator_ema.pt",
    )
    path = stages[1] / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"]["backbone"]["init_args"] |= {"pretrained": str(tmp_path / "flux"), "guidance": option}
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "gathered").mkdir()
    result = hub.gather([str(tmp_path / "student")], stages[1], None, tmp_path / "gathered")
    assert result.guidance_scale == scale
    assert f"    guidance_scale={scale}," in model_card(result, NAME).text


def test_a_base_in_a_folder_is_no_hub_id(server, stages):
    push(server, stages)
    assert ModelCard(server.repositories[NAME]["README.md"].decode()).data.base_model is None


def test_a_generator_with_a_base_of_its_own_is_published_for_that_base(tmp_path):
    init_args = {"pretrained": "klein-base", "generator_pretrained": "klein", "resolution": 512}
    init_args |= {"embedding_cache": "mine", "text_encoders": False}  # nobody else has that folder
    config = {"model": {"class_path": "x.RTDMDModule", "init_args": {"backbone": {"init_args": init_args}}}}
    result = Result("klein", {}, "Flux2KleinPipeline", 1.0, config, {})
    assert (result.sample_base, result.backbone, result.method) == (
        "klein-base",
        {"generator_pretrained": "klein"},
        "RTDMD",
    )


def test_no_pipeline_call_is_shown_for_steps_that_a_pipeline_would_space_evenly(server, stages):
    path = stages[1] / "config.yaml"
    path.write_text(path.read_text().replace("- 750", "- 600"))
    push(server, stages)
    text = server.repositories[NAME]["README.md"].decode()
    assert "```python" not in text and "not evenly spaced" in text and '--steps "[1000, 600, 500, 250]"' in text


def test_a_run_without_scores_says_so(server, stages):
    (stages[1] / "eval.jsonl").unlink()
    push(server, stages)
    assert "None were taken." in server.repositories[NAME]["README.md"].decode()


def test_what_the_hub_refuses_is_told(server, stages, tmp_path):
    with pytest.raises(UserError, match="the hub did not take someone/tiny-rtdmd"):
        push(server, stages, token="hf_wrong")
    with pytest.raises(UserError, match="the hub did not give someone/nothing"):
        hub.pull("someone/nothing", tmp_path / "out", endpoint=server.endpoint, token=TOKEN)
    server.repositories["someone/else"] = {"README.md": b"other"}
    with pytest.raises(UserError, match=r"no result of this project: it has no result\.json"):
        hub.pull("someone/else", tmp_path / "out", endpoint=server.endpoint, token=TOKEN)


def test_a_revision_is_fetched_where_one_is_asked_for(server, stages, tmp_path):
    push(server, stages)
    older = dict(server.repositories[NAME])
    result = json.loads(older["result.json"])
    older["result.json"] = json.dumps(result | {"adapters": ["rtdmd"]}).encode()
    server.revisions[f"{NAME}@v1"] = older
    options = {"endpoint": server.endpoint, "token": TOKEN}
    assert hub.pull(NAME, tmp_path / "old", revision="v1", **options) == [str(tmp_path / "old" / "rtdmd")]
    assert len(hub.pull(NAME, tmp_path / "new", **options)) == 2


def test_a_generator_with_its_own_distilled_base_is_published_with_that_base_and_its_guidance(stages, tmp_path):
    """FLUX.2's student starts from another base than its teacher: the adapters fit, and the card names, the student's."""
    save_tiny_flux(tmp_path / "teacher", guidance_embeds=False)
    save_tiny_flux(tmp_path / "student base", guidance_embeds=True)
    layer = "transformer_blocks.0.attn.to_q"
    state = {f"{layer}.lora_A.default.weight": torch.randn(2, 32), f"{layer}.lora_B.default.weight": torch.randn(32, 2)}
    (tmp_path / "my student").mkdir()
    torch.save(state, tmp_path / "my student" / "generator_ema.pt")
    path = stages[1] / "config.yaml"
    config = yaml.safe_load(path.read_text())
    bases = {"pretrained": str(tmp_path / "teacher"), "generator_pretrained": str(tmp_path / "student base")}
    config["model"]["init_args"]["backbone"]["init_args"] |= bases | {"guidance": 2.5}
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "gathered").mkdir()
    result = hub.gather([str(tmp_path / "my student")], stages[1], None, tmp_path / "gathered")
    assert result.base == str(tmp_path / "student base") and result.guidance_scale == 2.5
    assert json.loads((tmp_path / "gathered" / "result.json").read_text())["base"] == result.base
    text = model_card(result, NAME).text
    command = text.split("rtdmd sample")[1].split("--resolution")[0].replace("\\\n", " ")
    words = shlex.split(command)
    assert words[words.index("--base") + 1] == str(tmp_path / "teacher")
    assert json.loads(words[words.index("--backbone") + 1])["generator_pretrained"] == result.base
    assert words[words.index("--adapters") + 1] == "tiny-rtdmd/my student"


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        b'{"adapters": 3}',
        b'{"adapters": []}',
        b'{"adapters": [3]}',
        b'{"adapters": [".."]}',
        b'{"adapters": ["../../x"]}',
        b'{"adapters": ["/etc"]}',
        b'{"adapters": ["\\ud800"]}',
        b"[" * 100_000,
    ],
)
def test_a_result_that_leads_elsewhere_or_nowhere_is_refused(server, content, tmp_path):
    server.repositories["someone/else"] = {"result.json": content}
    with pytest.raises(UserError, match=r"result\.json"):
        hub.pull("someone/else", tmp_path / "out", endpoint=server.endpoint, token=TOKEN)


def test_a_file_that_would_leave_the_folder_is_not_fetched(server, tmp_path):
    server.repositories["someone/else"] = {
        "../evil/generator_ema.pt": b"evil",
        "result.json": b'{"adapters": ["evil"]}',
    }
    with pytest.raises(UserError, match="the hub did not give someone/else"):
        hub.pull("someone/else", tmp_path / "deep" / "out", endpoint=server.endpoint, token=TOKEN)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("repo_id", ["", "a b", "../x", "a/b/c", "a" * 300, "a/.."])
def test_a_malformed_id_is_refused_before_anything_is_read(repo_id, tmp_path):
    with pytest.raises(UserError, match="--repo_id"):
        hub.pull(repo_id, tmp_path / "out")
    with pytest.raises(UserError, match="--repo_id"):
        hub.push(["/nowhere"], tmp_path, repo_id)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense", "http://[bad"])
def test_a_hub_that_cannot_be_reached_is_told(endpoint, stages, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="the hub did not give someone/tiny-rtdmd"):
        hub.pull(NAME, tmp_path / "out", endpoint=endpoint, token=TOKEN)
    with pytest.raises(UserError, match="the hub did not take someone/tiny-rtdmd"):
        hub.push(stages[0], stages[1], NAME, endpoint=endpoint, token=TOKEN)


def test_offline_is_told(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="the hub did not give"):
        hub.pull(NAME, tmp_path / "out", token=TOKEN)
    with pytest.raises(UserError, match="the hub did not take"):
        hub.push(stages[0], stages[1], NAME, token=TOKEN)


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("config.yaml", "", "it lacks"),
        ("config.yaml", "a: 1", "it lacks 'seed_everything'"),
        ("config.yaml", "a: [", "not valid YAML"),
        (
            "config.yaml",
            "seed_everything: 0\ntrainer: {max_steps: 1}\nmodel: {init_args: {}}\ndata: {}",
            "it lacks 'sampler'",
        ),
        ("eval.jsonl", "", "is empty"),
        ("eval.jsonl", "{\n", "line 1 is not JSON"),
        ("eval.jsonl", "[1]\n", "line 1 is no evaluation"),
    ],
)
def test_a_run_that_is_none_is_told_by_its_file(file, content, wanted, stages, tmp_path):
    (stages[1] / file).write_text(content)
    (tmp_path / "gathered").mkdir()
    with pytest.raises(UserError, match=wanted) as caught:
        hub.gather(stages[0], stages[1], None, tmp_path / "gathered")
    assert file in str(caught.value)


def test_what_pull_prints_is_for_a_shell(server, stages, tmp_path, capsys):
    push(server, stages)
    out = tmp_path / "two words; rm -rf"
    hub.main(["pull", f"--repo_id={NAME}", f"--endpoint={server.endpoint}", f"--token={TOKEN}", f"--out={out}"])
    printed = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(printed) == ["--adapters", str(out / "cold_start"), str(out / "rtdmd")]


def test_pull_into_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out must be a folder"):
        hub.pull(NAME, tmp_path / "file")


def test_nothing_is_sent_of_a_stack_that_does_not_fit(server, stages, tmp_path):
    torch.save(
        {"x.lora_A.default.weight": torch.zeros(2, 4), "x.lora_B.default.weight": torch.zeros(4, 2)}, tmp_path / "x.pt"
    )
    with pytest.raises(UserError, match="no key matches"):
        push(server, ([str(tmp_path / "x.pt")], stages[1]))
    with pytest.raises(UserError, match="must differ"):
        push(server, ([stages[0][0]] * 2, stages[1]))
    with pytest.raises(UserError, match=r"no config\.yaml"):
        push(server, (stages[0], tmp_path))
    assert not server.repositories


def test_the_command_line_prints_the_adapters_for_the_other_commands(server, stages, tmp_path, capsys):
    options = [f"--repo_id={NAME}", f"--endpoint={server.endpoint}", f"--token={TOKEN}"]
    hub.main(["push", "--adapters", *stages[0], f"--run={stages[1]}", *options])
    hub.main(["pull", *options, f"--out={tmp_path / 'out'}"])
    pushed, pulled = capsys.readouterr().out.splitlines()[-2:]
    assert "/commit/" in pushed and pulled == f"--adapters {tmp_path}/out/cold_start {tmp_path}/out/rtdmd"
