"""What pyproject.toml cannot say: a wheel holds the configs and the toy world's networks too, as `rtdmd_lightning/shipped`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShipped(build_py):
    """They stay at the top of the repository, where people look for them; installed in place, they are found there."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("configs", "checkpoints"):
                shutil.copytree(name, Path(self.build_lib) / "rtdmd_lightning" / "shipped" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShipped})
