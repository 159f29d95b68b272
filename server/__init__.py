"""The server: JSON API, explorer and downloads of published dictionaries. It needs no torch."""
