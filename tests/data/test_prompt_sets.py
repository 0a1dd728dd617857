"""The command that makes the prompt sets: against the homes of the published files on loopback, and without a network."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

from rtdmd_lightning import prompts as command
from rtdmd_lightning.data import prompt_downloads, prompt_sets
from rtdmd_lightning.data.prompt_sets import PROMPT_SETS, Downloaded, make_prompt_set
from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.geneval import prompts as geneval_prompts
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import UserError, readable_errors
from tests.support.tiny import REPOSITORY

COMMIT = "c" * 40
DRAWBENCH = (
    "/datasets/sayakpaul/drawbench/resolve/ad794cba698c253ffdb6d18eff3fc87b004c1135/DrawBench Prompts - Sheet1.csv"
)
OCR = "/yifan123/flow_grpo/879042cf5707f8b90daa98d147d7deac2317c5da/dataset/ocr/test.txt"
GENEVAL2 = "/facebookresearch/GenEval2/a6e82d2289e8d418f27f0adee77908b07060eea3/geneval2_data.jsonl"
CSV = b'\xef\xbb\xbfPrompts,Category\r\nA red car.,Colors\r\n"A sign, with\r\n""Hello"".",Text\r\n'
QUESTIONS = {"prompt": "two cows", "vqa_list": [["How many cows are there?", "two"]], "skills": ["count"]}


class Homes(ThreadingHTTPServer):
    """Files by path as the hub and as GitHub serve them; `asked` lists what was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Homes

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        content = self.server.files.get(path)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(content or b"")))
        if content is not None:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if content is not None and self.command == "GET":
            self.server.asked.append(path)
            self.wfile.write(content)


@pytest.fixture
def homes(monkeypatch, tmp_path):
    server = Homes()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(prompt_downloads, "GITHUB", endpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "prompts"


def prompts_of(path) -> list[str]:
    return [entry["prompt"] for entry in load_prompts(str(path))]


def test_a_table_from_the_hub(homes, folder):
    """A prompt of two lines becomes one line."""
    homes.files[DRAWBENCH] = CSV
    assert make_prompt_set("drawbench", folder) == 2
    assert prompts_of(folder / "drawbench.txt") == ["A red car.", 'A sign, with "Hello".']
    assert (folder / "downloads" / "drawbench" / "DrawBench Prompts - Sheet1.csv").read_bytes() == CSV


def test_what_is_on_disk_is_not_asked_for_again(homes, folder):
    homes.files[OCR] = b'a sign "A"\na card "B"\n'
    make_prompt_set("ocr", folder)
    first = (folder / "ocr.txt").read_bytes()
    (folder / "ocr.txt").unlink()
    assert make_prompt_set("ocr", folder) == 2
    assert (folder / "ocr.txt").read_bytes() == first and homes.asked == [OCR]


def test_a_first_download_is_recorded_and_holds_from_then_on(homes, folder):
    homes.files[OCR] = b'a sign "A"\n'
    make_prompt_set("ocr", folder)
    recorded = json.loads((folder / "checksums.json").read_text())
    assert recorded == {"downloads/ocr/test.txt": hashlib.sha256(homes.files[OCR]).hexdigest()}
    (folder / "downloads" / "ocr" / "test.txt").unlink()
    homes.files[OCR] = b'a sign "other"\n'
    with pytest.raises(UserError, match=r"another version.*take its line out of .*checksums\.json"):
        make_prompt_set("ocr", folder)
    assert not (folder / "downloads" / "ocr" / "test.txt").exists()
    assert prompts_of(folder / "ocr.txt") == ['a sign "A"']
    (folder / "checksums.json").unlink()
    assert make_prompt_set("ocr", folder) == 1
    assert prompts_of(folder / "ocr.txt") == ['a sign "other"']


def test_a_known_checksum_refuses_other_content(homes, folder):
    homes.files[GENEVAL2] = json.dumps(QUESTIONS).encode()
    with pytest.raises(UserError, match=r"not 09233adbc9f8.*damaged or another version") as told:
        make_prompt_set("geneval2", folder)
    assert "checksums.json" not in str(told.value)
    assert not list(folder.rglob("*.jsonl"))


def test_geneval2_keeps_its_questions(homes, folder, monkeypatch):
    without = GENEVAL2.replace("GenEval2/", "Copy/")
    homes.files[without] = json.dumps(QUESTIONS).encode() + b"\n"
    file = prompt_downloads.GitHubFile("facebookresearch/Copy", "geneval2_data.jsonl", without.split("/")[3])
    copy = Downloaded("geneval2.jsonl", file, prompt_sets.from_geneval2_lines)
    monkeypatch.setitem(PROMPT_SETS, "geneval2", copy)
    make_prompt_set("geneval2", folder)
    assert load_prompts(str(folder / "geneval2.jsonl")) == [QUESTIONS]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("ocr", b'a sign "A"\na sign\n', "prompt 2: .*between double quotes"),
        ("drawbench", b"Prompts,Category\na,b\n ,c\n", "line 3 has nothing in the column Prompts"),
        ("drawbench", b"prompt\na\n", "line 2 has nothing in the column Prompts"),
        ("drawbench", b'Prompts\na\n"b\n', "after line 2 is not CSV"),
        ("drawbench", b"Prompts\n\xff\n", "is not CSV in UTF-8"),
    ],
)
def test_what_is_malformed_is_told_with_its_number(folder, name, content, told):
    """From files that were put there by hand."""
    kept = folder / "downloads" / name / PROMPT_SETS[name].file.name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    with pytest.raises(UserError, match=told):
        make_prompt_set(name, folder)
    assert not list(folder.glob("*.txt"))


def test_geneval2_without_questions_is_told_with_its_number(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{json.dumps(QUESTIONS)}\n{{"prompt": "a cow"}}\n')
    with pytest.raises(UserError, match=r"prompt 2: .*vqa_list"):
        prompt_sets.from_geneval2_lines(path)


@pytest.mark.parametrize("name", [name for name, made in PROMPT_SETS.items() if isinstance(made, Downloaded)])
def test_without_a_network_the_file_to_put_where_is_told(name, folder):
    file = PROMPT_SETS[name].file
    with pytest.raises(UserError) as told:
        make_prompt_set(name, folder)
    assert f"put it at {folder / 'downloads' / name / file.name} and run this again" in str(told.value)
    assert file.url in str(told.value) and file.url.startswith("https://")
    assert not folder.exists()


def test_a_home_that_has_lost_the_file_is_told(homes, folder):
    for name in ("ocr", "drawbench"):
        with pytest.raises(UserError, match=f"{name}: .* cannot be downloaded .*404.* put it at"):
            make_prompt_set(name, folder)


def test_the_command_makes_what_it_can_and_says_what_it_could_not(folder, capsys):
    with pytest.raises(SystemExit) as exit_, readable_errors():
        command.main(["geneval", "ocr", "--folder", str(folder)])
    assert exit_.value.code == 1
    out, err = capsys.readouterr()
    assert "553" in out
    assert err.count("error: ") == 1 and "dataset/ocr/test.txt cannot be downloaded" in err
    assert len(load_prompts(str(folder / "geneval.jsonl"))) == 553
    command.main(["geneval", "--folder", str(folder)])


def test_an_unknown_set_is_told():
    with pytest.raises(UserError, match="no prompt set 'drawbnch'; known are geneval, geneval_train"):
        command.main(["drawbnch"])


def test_another_numpy_that_draws_otherwise_is_refused(folder, monkeypatch):
    monkeypatch.setattr(geneval_prompts, "TEST_SEED", 1)
    with pytest.raises(UserError, match="draws other prompts than the published ones"):
        make_prompt_set("geneval", folder)
    assert not folder.exists()


def test_the_sets_are_what_the_configs_name():
    wanted = {entry["prompts"] for entry in compose(REPOSITORY / "configs/evaluate/sd35m.yaml")["sets"].values()}
    for stage in ("cold_start", "rtdmd"):
        wanted |= {compose(path)["data"]["prompts"] for path in (REPOSITORY / "configs" / stage).glob("sd35m.yaml")}
    assert wanted == {f"prompts/{prompt_set.target}" for prompt_set in PROMPT_SETS.values()}


@pytest.mark.slow
def test_the_module_is_a_command(tmp_path):
    command = [sys.executable, "-m", "rtdmd_lightning.prompts", "geneval", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=True)
    assert "553" in done.stdout and (tmp_path / "geneval.jsonl").is_file()
    assert "sys.modules" not in done.stderr  # runpy's warning, where the package imports the module that is the command
