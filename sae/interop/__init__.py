"""Other libraries' dictionaries: export, import, and the equality checks of both."""
