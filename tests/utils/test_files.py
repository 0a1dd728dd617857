"""Files are whole or absent, readable by whom the umask says, and a place that cannot be written is one sentence."""

import contextlib
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rtdmd_lightning import sample
from rtdmd_lightning.convert import convert
from rtdmd_lightning.data.embedding_store import EmbeddingStore
from rtdmd_lightning.embed import embed
from rtdmd_lightning.models.families import family_of
from rtdmd_lightning.prompts import main as prompts
from rtdmd_lightning.roles import writing
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.checkpointing import AtomicCheckpointIO
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.files import appearing_at, appearing_in, folder_appearing_at, slug, write_text
from tests.support.random_adapters import random_adapter
from tests.support.tiny import REPOSITORY


@pytest.fixture
def umask():
    """Others may read, as on most clusters."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder) -> set[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in files}


def test_every_adapter_format_has_the_umasks_mode(umask, tiny_folder, tmp_path):
    adapter = random_adapter(4)
    writing.write_published(adapter, tmp_path)
    writing.write_peft(adapter, tmp_path, str(tiny_folder))
    writing.write_diffusers(adapter, tmp_path, family_of(str(tiny_folder)).pipeline_class)
    convert([str(tmp_path)], str(tiny_folder), "merged", tmp_path / "merged")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert modes(tmp_path) == {"0o644"}


def test_cached_embeddings_have_the_umasks_mode(umask, tmp_path):
    EmbeddingStore(tmp_path, {}).write("a", Conditioning(torch.zeros(1, 2, 3)))
    assert modes(tmp_path) == {"0o644"}


def test_another_umask_is_another_mode(tmp_path):
    before = os.umask(0o027)
    try:
        with appearing_at(tmp_path / "a.safetensors") as partial:
            save_file({"a": torch.zeros(1)}, partial)
    finally:
        os.umask(before)
    assert modes(tmp_path) == {"0o640"}


@contextlib.contextmanager
def full_disk(size: int = 1000):
    """No file may grow beyond `size` bytes: the system calls fail as on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


BIG = torch.zeros(100, 100)


def checkpoint(folder):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": BIG}}, folder / "last.ckpt")


def embedding(folder):
    EmbeddingStore(folder, {}).write("a", Conditioning(BIG[None]))


def peft(folder):
    writing.write_peft(random_adapter(4), folder, "base")


def diffusers(folder):
    from diffusers import StableDiffusion3Pipeline

    writing.write_diffusers(random_adapter(4), folder, StableDiffusion3Pipeline)


def published(folder):
    writing.write_published(random_adapter(4), folder)


def text(folder):
    write_text("a" * 10_000, folder / "text.json")


@pytest.mark.parametrize("write", [checkpoint, embedding, peft, diffusers, published, text])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(write, tmp_path):
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with full_disk(), pytest.raises(UserError, match=r"cannot be written: .*too large") as caught:
        write(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_a_folder_stays_the_previous_one_until_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "result"
    for text in ("first", "second"):
        with folder_appearing_at(folder) as new:
            (new / text).touch()
            assert [path.name for path in tmp_path.rglob("first")] == ["first"]
            assert folder.exists() == (text == "second")
        assert [path.name for path in folder.iterdir()] == [text]
    with pytest.raises(InterruptedError), folder_appearing_at(folder):
        assert (folder / "second").exists()
        raise InterruptedError
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["result", "result/second"]


def test_a_file_whose_folder_has_gone_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=f"a.txt cannot be written: there is no folder {tmp_path}/gone"):
        write_text("a", tmp_path / "gone/a.txt")


def test_the_json_is_the_last_file_that_moves_into_a_folder(tmp_path, monkeypatch):
    """It is what readers look for."""
    moved: list[str] = []
    replace = os.replace

    def note(source, target) -> None:
        if Path(target).parent == tmp_path / "out":  # another thread may write something else
            moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    with appearing_in(tmp_path / "out") as partial:
        for name in ("adapter_config.json", "a.safetensors", "zzz.txt"):
            (partial / name).write_text(name)
        assert not [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert set(moved) == {"adapter_config.json", "a.safetensors", "zzz.txt"} and moved[-1] == "adapter_config.json"


def told(capsys, command) -> str:
    with pytest.raises(SystemExit) as exit_, readable_errors():
        command()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def commands(base, out) -> dict:
    """By the option that says where the output goes; the bases and adapters are not there: the output is refused first."""
    return {
        "--out": [
            lambda: convert([str(out)], base, "peft", out),
            lambda: sample.main([f"--base={base}", "--prompt=a", f"--out={out}"]),
        ],
        "--cache": [lambda: embed(base=base, prompts=["shapes:train"], cache=str(out), device="cpu")],
        "--folder": [lambda: prompts(["geneval_train", f"--folder={out}"])],
    }


@pytest.mark.parametrize("kind", ["file", "beneath a file", "too long"])
@pytest.mark.parametrize("option", ["--out", "--cache", "--folder"])
def test_an_output_that_is_no_place_to_write_is_refused_by_its_option(option, kind, tiny_folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    places = {"file": "file", "beneath a file": "file/deeper/out", "too long": "a" * 300}
    for command in commands(str(tiny_folder), tmp_path / places[kind])[option]:
        assert option in told(capsys, command)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_any_command_tells_that_its_output_cannot_be_written(tmp_path):
    """Also those that do not look ahead, as a shell sees it."""
    (tmp_path / "file").touch()
    script = (
        "from pathlib import Path\n"
        "from rtdmd_lightning.utils.errors import readable_errors\n"
        f"with readable_errors():\n    Path({str(tmp_path / 'file' / 'a')!r}).mkdir(parents=True)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path / 'file' / 'a'}: Not a directory")


def test_a_long_name_is_a_short_slug_that_differs_from_its_likes():
    names = ["a" * 300, "a" * 299 + "b", "A!" * 300]
    slugs = {slug(name) for name in names}
    assert len(slugs) == 3 and max(map(len, slugs)) < 100
    assert slug("A student, 4 steps") == "a_student_4_steps"
