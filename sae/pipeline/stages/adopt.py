"""The dictionary of an opened run: it comes from elsewhere, so that nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from sae.errors import ArtefactError, ConfigError
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.prepare import Prepare


@final
@dataclass(frozen=True)
class Adopt(DictionaryStage):
    """Checks that the dictionary which `sae open` brought into the run folder reads what the model shows.

    It takes the place of `Train`.
    """

    title = "adopt"
    needs = (Prepare,)

    def done(self, run: Run) -> bool:
        """Never: the check takes no time, and the model may be another one now."""
        return False

    def work(self, run: Run) -> None:
        """See the class."""
        if not (self.dictionary / "card.json").exists():
            raise ArtefactError(f"{self.dictionary}: the dictionary is gone. Remove the run folder and open it again.")
        sae, harvester = run.sae(self.dictionary), run.prepared.train.harvester
        for end, hooks, width in (("reads", sae.config.reads, sae.d_in), ("writes", sae.config.writes, sae.d_out)):
            wanted = sum(harvester.width(hook) for hook in hooks)
            if wanted != width:
                said = ", ".join(map(str, hooks))
                raise ConfigError(
                    f"{self.dictionary.name}: {end} {width} numbers per token, but {run.prepared.lm.name} has {wanted} at "
                    f"{said}. It is of another model or hook point: give --model and --hook (a transcoder also --target)."
                )
