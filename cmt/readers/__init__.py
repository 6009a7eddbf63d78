"""From files, folders and standard input to documents; a format a function."""

from cmt.readers.files import READERS, count_documents, list_files, read_path, read_stdin

__all__ = ["READERS", "count_documents", "list_files", "read_path", "read_stdin"]
