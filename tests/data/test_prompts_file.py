"""Prompt sources: what they hold, and one readable sentence for each that cannot be used."""

import json

import huggingface_hub.constants
import pytest

from rtdmd_lightning.data import prompts
from rtdmd_lightning.data.prompts import TRAINING_SAMPLE, load_prompts
from rtdmd_lightning.geneval.vocabulary import TAGS
from rtdmd_lightning.shapes.prompts import held_out_prompts, is_held_out
from rtdmd_lightning.utils.errors import UserError


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


def test_json_list_of_texts_and_objects(write):
    entry = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}
    source = write("prompts.json", json.dumps([" ein Bär ", entry], indent=1, ensure_ascii=False))
    assert load_prompts(source) == [{"prompt": "ein Bär"}, entry]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('["a dog",\n 3]', r"prompts\.json entry 2 must be an object"),
        ('["a dog", " "]', r"prompts\.json entry 2 must be an object"),
        ('{"prompt": "a dog"}', r"prompts\.json must be a list"),
        ('["a dog",\n "a cat"', r"prompts\.json is not JSON: .* \(line 2\)"),
        ("[]", r"prompts\.json' is empty"),
    ],
)
def test_json_that_is_no_list_of_prompts(write, text, told):
    with pytest.raises(UserError, match=told):
        load_prompts(write("prompts.json", text))


def test_folder_with_a_usual_name(write, tmp_path):
    """From the last resort to the first choice: each file that is added is preferred to those before it."""
    for split, names in (
        (
            "",
            ["prompts.txt", "prompts.jsonl", "evaluation_metadata.jsonl", "metadata.jsonl", "train.txt", "train.json"],
        ),
        (":train", ["train.jsonl", "train_metadata.jsonl"]),
        (":test", ["test.txt", "test.json", "test.jsonl", "test_metadata.jsonl"]),
    ):
        for name in names:
            one = json.dumps({"prompt": name})
            write(name, {"txt": name, "json": f"[{one}]", "jsonl": one}[name.partition(".")[2]])
            assert load_prompts(f"{tmp_path}{split}") == [{"prompt": name}]


def test_folder_without_a_usual_name(write, tmp_path):
    write("test.txt", "a dog")
    with pytest.raises(UserError, match=r"the prompt folder .* has none of train_metadata\.jsonl, .*prompts\.txt"):
        load_prompts(str(tmp_path))
    with pytest.raises(UserError, match=r"has none of val_metadata\.jsonl, val\.jsonl, val\.json, val\.txt;"):
        load_prompts(f"{tmp_path}:val")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's own cache, offline, with one data set's repository in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    repository = tmp_path / "datasets--someone--prompts"
    files = {"refs/main": commit, f"snapshots/{commit}/train.txt": "a dog", f"snapshots/{commit}/b/c.json": '["a cow"]'}
    for name, text in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)


def test_data_set_in_the_cache_of_the_hub(hub_cache):
    assert load_prompts("hub:someone/prompts") == load_prompts("hub:someone/prompts:train") == [{"prompt": "a dog"}]
    assert load_prompts("hub:someone/prompts:b/c.json") == [{"prompt": "a cow"}]
    with pytest.raises(UserError, match=r"has none of test_metadata\.jsonl"):
        load_prompts("hub:someone/prompts:test")
    with pytest.raises(UserError, match=r"d\.txt' does not exist"):
        load_prompts("hub:someone/prompts:d.txt")


@pytest.mark.parametrize("source", ["hub:someone/others", "hub:someone/others:test", "hub:", "hub:no/such/name"])
def test_data_set_out_of_reach(hub_cache, source):
    with pytest.raises(UserError, match=f"'{source}' are neither within reach nor in the hub's cache; fetch them"):
        load_prompts(source)


def test_only_the_prompt_file_is_downloaded(monkeypatch, tmp_path):
    """The client itself is tried in the tests of `hub`; here, what it is asked for."""
    asked = []

    def download(repository, **options):
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(prompts, "snapshot_download", download)
    (tmp_path / "test.txt").write_text("a dog")
    assert load_prompts("hub:someone/prompts:test") == [{"prompt": "a dog"}]
    names = ["test_metadata.jsonl", "test.jsonl", "test.json", "test.txt"]
    assert asked == [("someone/prompts", {"repo_type": "dataset", "allow_patterns": names})]


def test_training_prompts_of_the_toy_world():
    """The fixed sample: the same every time, none of it held out, every tag in it."""
    prompts = load_prompts("shapes:train")
    assert len(prompts) == TRAINING_SAMPLE
    assert {entry["tag"] for entry in prompts} == set(TAGS)
    assert not any(is_held_out(entry) for entry in prompts)
    assert load_prompts("shapes:train") == prompts


def test_training_prompts_in_equal_shares():
    prompts = load_prompts("shapes:train:even")
    counts = [sum(entry["tag"] == tag for entry in prompts) for tag in TAGS]
    assert sum(counts) == TRAINING_SAMPLE and max(counts) < 1.1 * min(counts)
    assert not any(is_held_out(entry) for entry in prompts)


def test_training_prompts_that_are_hard():
    prompts = load_prompts("shapes:train:hard")
    two = [entry for entry in prompts if entry["tag"] in ("two_object", "color_attr")]
    assert len(two) > 0.6 * TRAINING_SAMPLE and {entry["tag"] for entry in prompts} == set(TAGS)
    assert not any(is_held_out(entry) for entry in prompts)


def test_held_out_prompts_of_the_toy_world():
    assert load_prompts("shapes:held_out:7") == held_out_prompts(7)


def test_missing_file(tmp_path):
    for missing in (tmp_path / "none.txt", tmp_path / "none" / "prompts.jsonl", tmp_path / "none"):
        with pytest.raises(UserError, match="does not exist") as error:
            load_prompts(str(missing))
        assert str(missing) in str(error.value)


@pytest.mark.parametrize("name", ["prompts.csv", "prompts"])
def test_wrong_suffix(write, name):
    with pytest.raises(UserError, match=rf"{name}' must end in \.txt, \.jsonl or \.json"):
        load_prompts(write(name, "a dog"))


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl", "prompts.json"])
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
def test_unknown_split_of_the_toy_world(source):
    with pytest.raises(UserError) as error:
        load_prompts(source)
    assert source in str(error.value)
    assert "shapes:train, shapes:train:even, shapes:train:hard and shapes:held_out:N" in str(error.value)


def test_more_held_out_prompts_than_a_tag_has():
    with pytest.raises(UserError, match="'shapes:held_out:5000': tag 'single_object' has only 127 held-out prompts"):
        load_prompts("shapes:held_out:5000")
