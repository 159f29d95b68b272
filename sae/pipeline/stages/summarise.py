"""The end of a run: its summary, and the removal of what only a resumed run would need."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import final

from feature_store.dictionary_files import Metrics
from sae.pipeline.stage import Run, Stage
from sae.pipeline.stages.train import Train
from sae.pipeline.summary import FILE_NAME, summary_of

RESUME_FOLDERS = ("checkpoints", "activations/held_out", "codes")


@final
class Summarise(Stage):
    """summary.json."""

    title = "summarise"
    needs = (Train,)

    @staticmethod
    def path(folder: Path) -> Path:
        """The file of a run folder."""
        return folder / FILE_NAME

    def done(self, run: Run) -> bool:
        """Whether the summary is written."""
        return self.path(run.folder).exists()

    def work(self, run: Run) -> None:
        """Written last: with it the run counts as complete."""
        summary = summary_of(run)
        folders = run.config.dictionary_folders
        if run.log is not None:
            metrics = {name: Metrics.read(folder).as_json() for name, folder in folders.items()}
            run.log.finish(metrics, {f"{name}/curves": folder / "curves.png" for name, folder in folders.items()})

        for name in RESUME_FOLDERS:
            shutil.rmtree(run.folder / name, ignore_errors=True)

        for path in (run.folder / "activations").glob("*contexts-*"):  # the statistics stay, for `sae eval`
            path.unlink()

        summary.write(run.folder)
