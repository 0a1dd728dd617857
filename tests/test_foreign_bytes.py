"""Whatever bytes are handed in as adapters, prompts, configs, requests or embeddings: a result or a UserError, nothing else."""

import base64
import io
import json
import warnings
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from rtdmd_lightning import roles as adapters
from rtdmd_lightning.data.embedding_store import EmbeddingStore
from rtdmd_lightning.data.prompt_files import read_prompt_file
from rtdmd_lightning.data.prompt_formats import from_drawbench_csv
from rtdmd_lightning.rewards.serving.wire import decode
from rtdmd_lightning.roles import Adapter
from rtdmd_lightning.roles.reading import read_all
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.checkpointing import read_checkpoint
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import UserError

examples = hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)

PIECES = st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\x00", b"\xff" * 8, b'"', b"{", b"*", b"&"]))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just("\ud800"))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=9,
)
LAYER = "transformer_blocks.0.attn.to_q"
A, B = torch.ones(2, 4), torch.ones(4, 2)


def keys(prefix: str, name: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{LAYER}.lora_A{name}.weight": A, f"{prefix}{LAYER}.lora_B{name}.weight": B}


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def png(width: int = 3, height: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return buffer.getvalue()


GOOD = {
    "a.pt": pickled(keys("", ".default")),
    "a.ckpt": pickled({"state_dict": keys("roles.transformer.", ".generator_ema"), "lora_scale": 2.0}),
    "a.safetensors": save(keys("transformer.", ""), {"lora_adapter_metadata": '{"transformer.r": 2}'}),
    "a.txt": b"a red circle\n",
    "a.json": b'[{"prompt": "a", "tag": "b"}]',
    "a.jsonl": b'{"prompt": "a"}\n{"prompt": "b"}\n',
    "a.csv": b"Prompts,Category\na,b\n",
    "a.yaml": b"a: &x {b: [1, 2]}\nc: *x\nd: ${a.b}\n",
    "png": png(),
    "embedding": save({"embeds": torch.zeros(1, 2, 3), "pooled": torch.zeros(1, 3)}),
}


@st.composite
def changed(draw, good: bytes) -> bytes:
    """A good file with some bytes written over, cut off at some place, or anything at all."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content) - 1))
        piece = draw(
            st.one_of(
                st.binary(min_size=1, max_size=4), st.sampled_from([b"\x00", b"\xff" * 8, b'"', b"{", b"*", b"&"])
            )
        )
        content[place : place + len(piece)] = piece
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("foreign")


def result_or_user_error(function, *arguments):
    """What it returns, or None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments)
        except UserError as error:
            assert str(error)
            return None


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors"])
def test_adapter_files(name, folder):
    assert adapters.read(written(folder / name, GOOD[name])).layers.keys() == {LAYER}

    @examples
    @hypothesis.given(changed(GOOD[name]))
    def test(content):
        path = written(folder / name, content)
        read = result_or_user_error(adapters.read, path)
        assert read is None or isinstance(read, Adapter)
        result_or_user_error(read_all, path)
        if name == "a.ckpt":
            result_or_user_error(read_checkpoint, path)

    test()


TENSORS = st.sampled_from([A, B, A.int(), A.to(torch.complex64), A.to_sparse()])
NAMES = st.one_of(st.sampled_from([*keys("", ".default"), "state_dict", "lora_scale"]), st.integers())
PICKLED = st.recursive(
    st.one_of(LEAVES.filter(lambda leaf: leaf != "\ud800"), TENSORS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt"])
def test_pickles_of_anything_plain(name, folder):
    @examples
    @hypothesis.given(PICKLED)
    def test(content):
        result_or_user_error(adapters.read, written(folder / name, pickled(content)))

    test()


CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "peft_type": st.one_of(st.just("LORA"), LEAVES),
        "r": st.one_of(st.just(2), VALUES),
        "lora_alpha": st.one_of(st.just(2), VALUES),
        "rank_pattern": VALUES,
        "alpha_pattern": st.one_of(VALUES, st.dictionaries(st.sampled_from(["to_q", "^a", "("]), LEAVES, max_size=2)),
        "use_rslora": VALUES,
        "use_dora": VALUES,
        "bias": VALUES,
    },
)


def test_peft_configurations(folder):
    (folder / "adapter_model.safetensors").write_bytes(save(keys("base_model.model.", "")))

    @examples
    @hypothesis.given(st.one_of(CONFIG, CONFIG.map(lambda config: config | {"peft_type": "LORA", "r": 2}), VALUES))
    def test(config):
        (folder / "adapter_config.json").write_text(json.dumps(config))
        result_or_user_error(adapters.read, folder)

    test()


def test_diffusers_metadata(folder):
    @examples
    @hypothesis.given(
        st.one_of(VALUES, CONFIG.map(lambda config: {f"transformer.{key}": value for key, value in config.items()}))
    )
    def test(told):
        content = save(keys("transformer.", ""), {"lora_adapter_metadata": json.dumps(told)})
        result_or_user_error(adapters.read, written(folder / "a.safetensors", content))

    test()


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.csv"])
def test_prompt_files(name, folder):
    read = from_drawbench_csv if name == "a.csv" else read_prompt_file
    assert read(written(folder / name, GOOD[name]))[0]["prompt"] in ("a", "a red circle")

    @examples
    @hypothesis.given(st.one_of(changed(GOOD[name]), VALUES.map(lambda value: json.dumps([value]).encode())))
    def test(content):
        found = result_or_user_error(read, written(folder / name, content))
        assert found is None or json.dumps(found, ensure_ascii=False).encode()

    test()


def test_configs(folder):
    assert compose(written(folder / "a.yaml", GOOD["a.yaml"]))["d"] == [1, 2]
    texts = st.text(max_size=9).filter(lambda text: text.isprintable())
    values = st.dictionaries(
        st.one_of(texts, st.just("defaults")), VALUES.filter(lambda value: "\\ud800" not in json.dumps(value))
    )

    @examples
    @hypothesis.given(st.one_of(changed(GOOD["a.yaml"]), values.map(lambda value: yaml.safe_dump(value).encode())))
    def test(content):
        result_or_user_error(compose, written(folder / "a.yaml", content))

    test()


def test_requests():
    picture = base64.b64encode(GOOD["png"]).decode()
    good = {"reward": "a", "images": [picture], "prompts": ["a"], "metadata": [{}]}
    assert unfolded(json.dumps(good).encode())[0].shape == (3, 2, 3)

    @examples
    @hypothesis.given(
        st.one_of(
            changed(json.dumps(good).encode()),
            st.dictionaries(st.sampled_from(list(good)), VALUES).map(lambda value: json.dumps(good | value).encode()),
            changed(GOOD["png"]).map(
                lambda odd: json.dumps(good | {"images": [base64.b64encode(odd).decode()]}).encode()
            ),
        )
    )
    def test(body):
        result_or_user_error(unfolded, body)

    test()


def unfolded(body: bytes) -> list[torch.Tensor]:
    return decode(body).images()


def test_cached_embeddings(folder):
    path = EmbeddingStore(folder, {}).path("a")
    path.parent.mkdir(parents=True)
    written(path, GOOD["embedding"])
    assert isinstance(EmbeddingStore(folder, {}).read("a"), Conditioning)

    @examples
    @hypothesis.given(changed(GOOD["embedding"]))
    def test(content):
        written(path, content)
        result_or_user_error(EmbeddingStore(folder, {}).read, "a")

    test()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
