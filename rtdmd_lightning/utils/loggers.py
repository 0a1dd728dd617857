"""What Lightning's loggers do to what they find in a run's folder."""

import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

DELETES = "Experiment logs directory .* exists and is not empty"
"""What a `CSVLogger` warns of, and `keep_rows` prevents."""


def keep_rows(loggers: list[Logger]) -> None:
    """Let the file of a `CSVLogger` keep the rows that it has: a resumed run's has all of them.

    The logger deletes the file when it begins. Call it on the first process only, before the trainer starts.
    """
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        file = Path(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if file.is_file():
            with file.open(newline="") as stream:
                rows = list(csv.DictReader(stream))
            logger.experiment.metrics = rows
            logger.save()
