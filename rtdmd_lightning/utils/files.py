"""Small matters of files: files that are whole or absent, names as file names, what contents are told by."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from safetensors import SafetensorError

from rtdmd_lightning.utils.errors import UserError, disk_error_in, first_line, of_the_disk, require

SAMPLED_BYTES = 65_536
LONGEST_SLUG = 80
PARTIAL_PREFIX = ".partial-"  # of a folder that is being written


def write_text(text: str, path: Path) -> None:
    """A reader never meets half of it, and a killed run leaves the previous one."""
    with appearing_at(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def appearing_at(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes its place at the end; processes that do so at once never meet halfway.

    Raises UserError that names the path where it cannot be written; then nothing of it stays.
    """
    partial = path.with_name(f"{uuid4().hex}.partial")
    try:
        with writing(path):
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # safetensors makes files that nobody else may read
            os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def appearing_in(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` when the body is done, JSON last: it is what readers look for.

    Raises UserError that names the folder where it cannot be written; then nothing of it stays.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
            yield Path(scratch)
            allow_reading(Path(scratch))
            for file in sorted(Path(scratch).iterdir(), key=lambda file: file.suffix == ".json"):
                os.replace(file, folder / file.name)


def allow_reading(folder: Path) -> None:
    """Give every file below a folder the mode that a new one has here (the umask's): safetensors lets nobody else read its."""
    probe = folder / f"{uuid4().hex}.partial"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While the body writes `path`: a full disk, or a path that is no place for it, is a UserError that names it."""
    try:
        yield
    except Exception as error:
        if (found := disk_error_in(error)) is not None:
            told = str(found.strerror)
        elif isinstance(error, FileNotFoundError) and not path.parent.exists():
            told = f"there is no folder {path.parent}"
        elif isinstance(error, SafetensorError) and "I/O error" in str(error):
            told = first_line(error)
        else:
            raise
        raise UserError(f"{path} cannot be written: {told}") from error


def check_output(folder: Path, option: str) -> None:
    """Raise UserError that names the option unless `folder` is, or can be made, a folder to write into. Nothing is made."""
    try:
        place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise UserError(f"{option}: {of_the_disk(error)}") from error
    require(place.is_dir(), f"{option} must be a folder to write into, and {place} is a file")
    require(os.access(place, os.W_OK | os.X_OK), f"{option}: the folder {place} cannot be written to")


@contextmanager
def folder_appearing_at(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `folder` at the end: a reader meets all of it or the previous one.

    Killed between the two renames, it leaves neither in place.
    """
    scratch = folder.with_name(f"{PARTIAL_PREFIX}{uuid4().hex}")
    new, previous = scratch / "new", scratch / "previous"
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            os.rename(folder, previous)
        os.rename(new, folder)
    finally:
        shutil.rmtree(scratch)


def slug(name: str) -> str:
    """A name in the letters, and of a length, that every file system takes. A long one ends in a digest of the whole."""
    short = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "_"
    if len(short) <= LONGEST_SLUG:
        return short
    return f"{short[:LONGEST_SLUG]}_{digest(name.encode('utf-8', 'surrogatepass'))}"


def content_digest(path: Path) -> str:
    """Digest of a file, or of all files of a folder, without reading gigabytes.

    Size and both ends of each file: retrained weights differ in nearly every byte.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    parts = []
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(SAMPLED_BYTES)
            stream.seek(max(0, size - SAMPLED_BYTES))
            parts += [f"{file.relative_to(path)} {size} ".encode(), head, stream.read()]
    return digest(b"".join(parts))


def digest(data: bytes) -> str:
    """Twelve hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=6).hexdigest()
