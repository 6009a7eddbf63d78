"""From files, folders and standard input to documents; a format a function."""

from cmt.readers.files import READERS, read_path, read_stdin

__all__ = ["READERS", "read_path", "read_stdin"]
