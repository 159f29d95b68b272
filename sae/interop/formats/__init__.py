"""Finds every foreign format in this folder; one new file adds a format, which is called like the file."""

from __future__ import annotations

from sae.foundation.discovery import instances_in
from sae.interop.format import Format

FORMATS = instances_in(__name__, Format)
