"""A feature's page inside a notebook: `sae.show`. Needs anywidget: pip install 'saedex[notebook]'."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from feature_store import queries
from feature_store.dictionary_files import DictionaryCard
from feature_store.lookup.bodies import Surroundings, contexts_body, feature_body
from feature_store.store import Store
from sae.errors import ArtefactError, ConfigError

MODULE = "static/widget.js"  # beside the explorer, which it is built with


class FeatureWidget(anywidget.AnyWidget):
    """The page of one feature. `feature` may be set, and follows the links that a reader chooses.

    A number that no feature has raises `ConfigError`.
    """

    dictionary = traitlets.Unicode().tag(sync=True)
    feature = traitlets.Int().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, folder: Path, feature: int):
        card = DictionaryCard.read(folder)
        self._store = Store(folder / "store")
        super().__init__(dictionary=f"{card.run}.{card.name}", feature=feature, _esm=_module())
        self.shown = self._bodies(feature)

    @traitlets.validate("feature")
    def _is_there(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < self._store.n_features:
            raise ConfigError(f"feature {proposal['value']}: there are features 0 to {self._store.n_features - 1}")
        return proposal["value"]

    @traitlets.observe("feature")
    def _read(self, change: Any) -> None:
        self.shown = self._bodies(change["new"])

    def _bodies(self, feature: int) -> dict[str, Any]:
        """What the API says of the feature and of its contexts."""
        [record] = queries.features(self._store, feature, feature + 1)
        [(_, pack)] = queries.packs(self._store, feature, feature + 1)
        return {
            "detail": feature_body(Surroundings(self._store, feature), record),
            "contexts": contexts_body(self._store, feature, record.row.max_act, pack),
        }


def _module() -> str:
    path = files("server") / MODULE
    if not path.is_file():
        raise ArtefactError(f"{MODULE}: the explorer is not built. Run `make ui`, or install the wheel.")
    return path.read_text(encoding="utf-8")
