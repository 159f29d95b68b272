"""Compiled sparse products, selections and training steps; `reference` says in plain torch what they compute."""
