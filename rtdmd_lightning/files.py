"""Small matters of files: texts that are whole or absent, names as file names."""

import os
import re
from pathlib import Path


def write_text(text: str, path: Path) -> None:
    """Under another name first: a reader never meets half of it, and a killed run leaves the previous one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def slug(name: str) -> str:
    """A name in the letters that every file system takes."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "_"
