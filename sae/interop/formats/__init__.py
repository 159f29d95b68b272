"""Every foreign format in this folder, found by looking: one file adds one, and its name is the format's."""

from __future__ import annotations

from sae.foundation.discovery import instances_in
from sae.interop.format import Format

FORMATS = instances_in(__name__, Format)
