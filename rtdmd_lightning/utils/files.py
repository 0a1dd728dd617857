"""Small matters of files: texts that are whole or absent, names as file names, what contents are told by."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

SAMPLED_BYTES = 65_536
PARTIAL_PREFIX = ".partial-"  # of a folder that is being written


def write_text(text: str, path: Path) -> None:
    """A reader never meets half of it, and a killed run leaves the previous one."""
    with appearing_at(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def appearing_at(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes its place at the end; processes that do so at once never meet halfway."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    """A name in the letters that every file system takes."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "_"


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
