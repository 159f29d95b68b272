"""Finds every measure in this folder; one new file adds a measure."""

from __future__ import annotations

from sae.evaluation.measure import Measure
from sae.foundation.discovery import instances_in

MEASURES = dict(sorted(instances_in(__name__, Measure).items(), key=lambda item: (item[1].order, item[0])))
