"""Finds every layout of feature pages in this folder; one new file adds a layout, which is called like the file."""

from __future__ import annotations

from sae.foundation.discovery import instances_in
from sae.interop.dashboard import Dashboard

DASHBOARDS = instances_in(__name__, Dashboard)
