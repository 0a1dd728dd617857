"""Text in a picture, read by rapidocr: what a process that reads needs, and no more (torch takes seconds to import)."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Read = Callable[[np.ndarray], str]
"""A picture `[H, W, 3]` of uint8, blue first as OpenCV has it, to the text in it."""


def rapidocr(threads: int) -> Read:
    """The reader on so many CPU threads, with the models that its package ships."""
    from rapidocr import RapidOCR

    of_kind = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": threads for kind in ("intra", "inter")}
    engine: Any = RapidOCR(params={"Global.log_level": "error", **of_kind})
    return lambda picture: "".join(engine(picture).txts or ())


_reader: Read
"""Of a worker process."""


def start_worker(make: Callable[[int], Read], threads: int) -> None:
    """In a worker process, once: make its reader."""
    global _reader
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _reader = make(threads)


def read_in_worker(picture: np.ndarray) -> str:
    return _reader(picture)


def _end_with_parent() -> None:
    """A parent that is killed closes no pool, and its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
