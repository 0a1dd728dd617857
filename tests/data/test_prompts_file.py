"""Prompt sources: what they hold, and one readable sentence for each that cannot be used."""

import json

import pytest

from rtdmd_lightning.data.prompts import TRAINING_SAMPLE, load_prompts
from rtdmd_lightning.errors import UserError
from rtdmd_lightning.shapes.prompts import TAGS, held_out_prompts, is_held_out


@pytest.fixture
def write(tmp_path):
    """Write a file, return its path as the source that a config would name."""

    def _write(name: str, text: str | bytes) -> str:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return str(tmp_path / name)

    return _write


def test_text_file_a_prompt_a_line(write):
    """Blank lines and the spaces around a prompt are dropped; order and duplicates are kept."""
    source = write("prompts.txt", "a dog\n\n  two cats \r\n\t\na dog\nein Bär, 'quoted' {braced}")
    assert load_prompts(source) == [
        {"prompt": "a dog"},
        {"prompt": "two cats"},
        {"prompt": "a dog"},
        {"prompt": "ein Bär, 'quoted' {braced}"},
    ]


def test_json_lines_keep_their_metadata(write):
    entries = [
        {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"},
        {"prompt": "ein Bär"},
    ]
    source = write("prompts.jsonl", "\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries))
    assert load_prompts(source) == entries


@pytest.mark.parametrize(("name", "line"), [("prompts.txt", "a dog"), ("prompts.jsonl", '{"prompt": "a dog"}')])
def test_byte_order_mark_is_not_part_of_the_first_prompt(write, name, line):
    assert load_prompts(write(name, "\ufeff" + line)) == [{"prompt": "a dog"}]


def test_only_a_newline_ends_a_line(write):
    """JSON allows the other separators of Unicode inside a text."""
    prompt = "a dog\u2028and a cat\u0085"
    source = write("prompts.jsonl", json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n")
    assert load_prompts(source) == [{"prompt": prompt}]


def test_training_prompts_of_the_embedded_world():
    """The fixed sample: the same every time, none of it held out, every tag in it."""
    prompts = load_prompts("shapes:train")
    assert len(prompts) == TRAINING_SAMPLE
    assert {entry["tag"] for entry in prompts} == set(TAGS)
    assert not any(is_held_out(entry) for entry in prompts)
    assert load_prompts("shapes:train") == prompts


def test_held_out_prompts_of_the_embedded_world():
    assert load_prompts("shapes:held_out:7") == held_out_prompts(7)


def test_missing_file(tmp_path):
    for missing in (tmp_path / "none.txt", tmp_path / "none" / "prompts.jsonl", tmp_path):
        with pytest.raises(UserError, match="does not exist") as error:
            load_prompts(str(missing))
        assert str(missing) in str(error.value)


@pytest.mark.parametrize("name", ["prompts.csv", "prompts", "prompts.json"])
def test_wrong_suffix(write, name):
    with pytest.raises(UserError, match=rf"{name}' must end in \.txt or \.jsonl"):
        load_prompts(write(name, "a dog"))


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_empty_file(write, name, text):
    with pytest.raises(UserError, match=f"{name}' is empty"):
        load_prompts(write(name, text))


def test_line_that_is_not_json(write):
    """Blank lines count too: the number is the editor's."""
    source = write("prompts.jsonl", '{"prompt": "a dog"}\n\n{"prompt": "a cat"\n{"prompt": "a cow"}')
    with pytest.raises(UserError, match=r"prompts\.jsonl line 3 is not JSON"):
        load_prompts(source)


@pytest.mark.parametrize(
    "line", ['"a dog"', "3", "[]", "null", "{}", '{"prompt": 3}', '{"prompt": " "}', '{"text": "a"}']
)
def test_line_without_a_prompt(write, line):
    source = write("prompts.jsonl", f'{{"prompt": "a dog"}}\n{line}\n')
    with pytest.raises(
        UserError, match=r"prompts\.jsonl line 2 must be an object with a non-empty text under 'prompt'"
    ):
        load_prompts(source)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_file_that_is_not_utf8(write, name):
    with pytest.raises(UserError, match=rf"{name}' is not UTF-8"):
        load_prompts(write(name, "ein Bär".encode("latin-1")))


@pytest.mark.parametrize(
    "source",
    [
        "shapes",
        "shapes:",
        "shapes:test",
        "shapes:train:5",
        "shapes:held_out",
        "shapes:held_out:",
        "shapes:held_out:many",
        "shapes:held_out:-1",
        "shapes:held_out:0",
        "shapes:held_out:2.5",
        "shapes:held_out:²",
    ],
)
def test_unknown_split_of_the_embedded_world(source):
    with pytest.raises(UserError) as error:
        load_prompts(source)
    assert source in str(error.value)
    assert "shapes:train and shapes:held_out:N" in str(error.value)


def test_more_held_out_prompts_than_a_tag_has():
    with pytest.raises(UserError, match="'shapes:held_out:5000': tag 'single_object' has only 127 held-out prompts"):
        load_prompts("shapes:held_out:5000")
