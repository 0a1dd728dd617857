"""Stands in for rapidocr in a process of its own; it reads the grey of a picture."""

import os
import signal
import time

SLOW, PROCESS, KILLED = 250, 251, 252  # greys


def fake_reader(threads: int):
    def read(picture) -> str:
        grey = int(picture[0, 0, 0])
        if grey == SLOW:
            time.sleep(0.5)
        if grey == PROCESS:
            return str(os.getpid())
        if grey == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"grey {grey}"

    return read
