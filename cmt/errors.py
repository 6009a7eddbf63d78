"""The exceptions a user can meet.

Each message says what was expected and what was got. Everything derives from
`CMTError`, so a program can catch one class; the command line prints the message
and exits with the class's `exit_code` instead of showing a traceback.
"""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """The command that brings the packages of an extra; no release is on PyPI."""
    return f"pip install -e '.[{extra}]' in a checkout"


class CMTError(Exception):
    """Base of every error this library raises on purpose."""

    exit_code = 1


class InputError(CMTError, ValueError):
    """What the user passed in can't be used: an argument, a document, a file."""

    exit_code = 2


class DocumentError(InputError):
    """One document can't be learned (empty, binary, unreadable, broken); others can."""


class UnknownIdError(InputError):
    """The bank holds no document or memory with the id that was asked for."""


class ModelError(CMTError):
    """The base model can't be found, fetched, verified or used."""

    exit_code = 3


class CheckpointError(CMTError):
    """The compressor checkpoint can't be loaded or doesn't fit the base model."""

    exit_code = 3


class BankError(CMTError):
    """The memory bank can't be opened, read or written."""

    exit_code = 4


class FingerprintMismatchError(BankError):
    """The bank was made by another base model or compressor."""


class CorruptRecordError(BankError):
    """A stored record's checksum doesn't match its bytes.

    Attributes:
        document_id, memory_id: What can't be used because of it, where it is known.
    """

    document_id: str | None = None
    memory_id: int | None = None


class EmptyBankError(BankError):
    """A question was asked of a bank that holds nothing."""
