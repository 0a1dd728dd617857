"""A logger that keeps its files elsewhere, as Weights & Biases does: it has a save_dir and no log_dir."""

from pathlib import Path

from lightning.pytorch.loggers import Logger


class ElsewhereLogger(Logger):
    def __init__(self, project: str, save_dir: str = ".") -> None:
        super().__init__()
        self.project, self._save_dir = project, save_dir
        self.rows: list[dict] = []

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return "a3xz"

    @property
    def save_dir(self) -> str:
        return self._save_dir

    def log_metrics(self, metrics, step=None) -> None:
        folder = Path(self._save_dir) / "elsewhere"
        folder.mkdir(exist_ok=True)
        (folder / "rows").open("a").write(f"{step}\n")

    def log_hyperparams(self, *arguments, **options) -> None:
        pass
