"""Self-matching's search: a question's key against every key of the bank, exactly.

Shape legend: N keys in the bank, M of them selected, Q questions, C key size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cmt.bank import Bank, KeyChanges
from cmt.bank.entries import UNIT_TOLERANCE
from cmt.errors import EmptyBankError, InputError
from cmt.selection import FieldColumns, Selection

_KEYS_AT_ONCE = 8192
_FIRST_ROWS = 1024
_FEW = 8  # a selection of fewer than one in so many keys is copied out
_IN_FORCE = Selection(namespace=None)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory that a search found.

    Attributes:
        score: The cosine of the two keys, in [-1, 1].
        starts: From when on its document holds, in seconds since 1970.
        late: What late interaction adds to its logit (late_interaction.py); 0 without.
        lexical: What BM25 adds to it (lexical.py); 0 without.
    """

    memory_id: int
    score: float
    starts: float = 0.0
    late: float = 0.0
    lexical: float = 0.0


class KeyIndex:
    """All keys of a bank in memory, following the bank as it changes.

    Threads may share an index. It is in NumPy, not torch, because torch's float32 products
    may be set to lower precision for the whole process, and a search is to be exact.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._lock = threading.Lock()
        self._cursor = 0
        self._size = 0  # rows in use; those behind are spare
        self._keys_NC = np.empty((0, 0), np.float32)
        self._ids_N = np.empty(0, np.int64)
        self._columns = FieldColumns()
        self._rows: dict[int, int] = {}  # memory id -> row

    def __len__(self) -> int:
        """How many keys the index held after its last search or refresh."""
        return self._size

    def refresh(self) -> None:
        """Take over what changed in the bank; every search does it first."""
        with self._lock:
            self._refresh()

    def search(
        self, query_keys: torch.Tensor, top_k: int, selection: Selection | None = None
    ) -> list[list[Hit]]:
        """The best memories for each question by exact cosine, best first.

        Equal scores are ordered by memory id. A question's hits depend on nothing but its key
        and the bank: not on the other questions, nor on the order in which memories came.

        Args:
            query_keys: Unit vectors, shape (Q, C).
            top_k: Most hits a question; fewer where fewer memories are selected, maybe none.
            selection: Whose memories are searched; None: of what holds now, of any namespace.

        Raises:
            EmptyBankError: The bank holds no memory.
            InputError: top_k < 1, or keys of another shape, not finite or not of length 1.
        """
        if top_k < 1:
            raise InputError(f"expected top_k >= 1, got {top_k}")
        with self._lock:
            self._refresh()
            if self._size == 0:
                raise EmptyBankError("the bank holds no memory yet: add documents first")
            keys_NC, ids_N = self._keys_NC[: self._size], self._ids_N[: self._size]
            queries_QC = _checked_queries(query_keys, keys_NC.shape[1])
            rows = self._columns.selected(selection or _IN_FORCE)
            if rows is None:
                scores_QM = queries_QC @ keys_NC.T
            elif len(rows) * _FEW < self._size:  # quicker copied than scored with all others
                scores_QM = queries_QC @ keys_NC[rows].T
            else:
                scores_QM = (queries_QC @ keys_NC.T)[:, rows]
            return [
                [
                    Hit(int(ids_N[row]), score, self._columns.starts(row))
                    for row, score in _best(keys_NC, ids_N, rows, query_C, scores_M, top_k)
                ]
                for query_C, scores_M in zip(queries_QC, scores_QM, strict=True)
            ]

    def alike(self, memory_ids: Sequence[int]) -> np.ndarray:
        """Cosines of these memories' keys with each other, (n, n); 0 for keys that are gone."""
        with self._lock:
            keys_nC = np.zeros((len(memory_ids), self._keys_NC.shape[1]), np.float32)
            for place, memory_id in enumerate(memory_ids):
                if memory_id in self._rows:
                    keys_nC[place] = self._keys_NC[self._rows[memory_id]]
        return keys_nC @ keys_nC.T

    def leave_out(self, memory_id: int) -> None:
        """Match a memory no more, because it turned out to be damaged."""
        with self._lock:
            self._remove(memory_id)

    def _refresh(self) -> None:
        complete = False
        while not complete:
            changes = self._bank.key_changes(self._cursor, limit=_KEYS_AT_ONCE)
            for memory_id in changes.removed_ids:
                self._remove(memory_id)
            for memory_id, fields in changes.changed:
                if memory_id in self._rows:
                    self._columns.put(self._rows[memory_id], fields)
            self._append(changes)
            self._cursor, complete = changes.cursor, changes.complete

    def _append(self, changes: KeyChanges) -> None:
        if not changes.added_ids:
            return
        ids, keys = np.array(changes.added_ids, np.int64), changes.added_keys
        with np.errstate(over="ignore", invalid="ignore"):  # of damaged keys
            sound = np.abs(np.linalg.norm(keys, axis=1) - 1.0) <= UNIT_TOLERANCE  # False for NaN
        for memory_id in ids[~sound]:
            _logger.warning(
                "the key of memory %d is damaged, it can't be matched: Bank.verify() names its "
                "document",
                memory_id,
            )
        ids, keys = ids[sound], keys[sound]
        fields = [own for own, fine in zip(changes.added_fields, sound, strict=True) if fine]
        end = self._size + len(ids)
        self._reserve(end, keys.shape[1])
        self._keys_NC[self._size : end] = keys
        self._ids_N[self._size : end] = ids
        self._columns.append(fields)
        self._rows.update(zip(ids.tolist(), range(self._size, end), strict=True))
        self._size = end

    def _reserve(self, rows: int, key_size: int) -> None:
        """Room for so many rows; capacity doubles, so that growing costs little on average."""
        capacity = len(self._ids_N)
        if rows <= capacity and key_size == self._keys_NC.shape[1]:
            return
        capacity = max(rows, 2 * capacity, _FIRST_ROWS)
        keys_NC, ids_N = np.empty((capacity, key_size), np.float32), np.empty(capacity, np.int64)
        if self._size > 0:
            keys_NC[: self._size] = self._keys_NC[: self._size]
            ids_N[: self._size] = self._ids_N[: self._size]
        self._keys_NC, self._ids_N = keys_NC, ids_N
        self._columns.reserve(capacity)

    def _remove(self, memory_id: int) -> None:
        """Drop a key and move the last one into its row; ids never indexed are ignored."""
        row = self._rows.pop(memory_id, None)
        if row is None:
            return
        self._size -= 1
        self._columns.remove(row)
        if row != self._size:
            last_id = int(self._ids_N[self._size])
            self._keys_NC[row] = self._keys_NC[self._size]
            self._ids_N[row] = last_id
            self._rows[last_id] = row


def _checked_queries(query_keys: torch.Tensor, key_size: int) -> np.ndarray:
    """The queries as a float32 array (Q, C)."""
    if query_keys.ndim != 2 or query_keys.shape[1] != key_size:
        raise InputError(
            f"expected query keys of shape (Q, {key_size}), as the bank's keys, "
            f"got {tuple(query_keys.shape)}"
        )
    queries_QC: np.ndarray = query_keys.detach().to("cpu", torch.float32).numpy()
    norms_Q = np.linalg.norm(queries_QC, axis=1)
    wrong = ~(np.abs(norms_Q - 1.0) <= UNIT_TOLERANCE)
    if wrong.any():
        raise InputError(f"expected query keys of length 1, got length {norms_Q[wrong][0]:.4g}")
    return queries_QC


def _best(
    keys_NC: np.ndarray,
    ids_N: np.ndarray,
    selected_M: np.ndarray | None,
    query_C: np.ndarray,
    scores_M: np.ndarray,
    top_k: int,
) -> list[tuple[int, float]]:
    """The top_k rows and scores of one question, from float32 scores of the rows selected.

    Float32 products differ in the last digits with the batch and with a key's row. So every
    key that rounding could have kept out is scored once more, in float64 and row by row, and
    rounded back: then equal keys have equal scores, wherever they lie.
    """
    size, key_size = len(scores_M), keys_NC.shape[1]
    if size == 0:
        return []
    near = np.arange(size)
    if top_k < size:
        kth_best = np.partition(scores_M, size - top_k)[size - top_k]
        rounding = key_size * np.finfo(np.float32).eps
        near = np.flatnonzero(scores_M >= kth_best - rounding)
    rows = near if selected_M is None else selected_M[near]
    exact = np.concatenate(
        [
            (keys_NC[part].astype(np.float64) * query_C).sum(axis=1)
            for part in np.split(rows, range(_KEYS_AT_ONCE, len(rows), _KEYS_AT_ONCE))
        ]
    )
    scores = np.clip(exact, -1.0, 1.0).astype(np.float32)
    order = np.lexsort((ids_N[rows], -scores))[:top_k]
    return [(int(rows[i]), float(scores[i])) for i in order]
