"""What is wrong with a file of a dictionary or a run, in one line that names it."""


class FileError(Exception):
    """A file that is missing, damaged, or of a format that this saedex does not read."""


class JsonFileError(FileError):
    """A JSON file that is missing, damaged, or of a format that this saedex does not read."""


class StoreError(FileError):
    """A store that is missing, damaged, of a newer format, or not a store."""
