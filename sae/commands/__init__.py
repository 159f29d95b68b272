"""Finds the commands of `sae` in this folder, one file per command."""

from __future__ import annotations

from sae.commands.command import Command
from sae.foundation.discovery import instances_in


def commands() -> list[Command]:
    """All commands, in the order of the help."""
    return sorted(instances_in(__name__, Command).values(), key=lambda command: command.order)
