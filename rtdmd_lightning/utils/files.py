"""Small matters of files: texts that are whole or absent, names as file names, what contents are told by."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

SAMPLED_BYTES = 65_536


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
