"""A picture of the bank: every key in two dimensions, by principal component analysis.

Shape legend: N keys, C key size.
"""

from __future__ import annotations

import logging
import threading

import numpy as np

from cmt.bank import MemorySource
from cmt.errors import CorruptRecordError, UnknownIdError
from cmt.memory import Memory
from cmt.server.responses import (
    MapPoint,
    MapResponse,
)

EXCERPT_CHARS = 160
_ATTEMPTS = 8

_logger = logging.getLogger(__name__)


def principal_components(keys_NC: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The keys' first two principal components, (N, 2), and the variance share of each.

    A component's sign is chosen so that its largest coordinate is positive: the picture does
    not flip when a key joins. Each component is scaled to [-1, 1]; equal keys give zeros.
    """
    centred_NC = keys_NC.astype(np.float64) - keys_NC.mean(axis=0, dtype=np.float64)
    values_C, axes_CC = np.linalg.eigh(centred_NC.T @ centred_NC)
    axes_C2 = axes_CC[:, :-3:-1]
    axes_C2 = axes_C2 * np.sign(axes_C2[np.abs(axes_C2).argmax(axis=0), [0, 1]])
    plane_N2 = centred_NC @ axes_C2
    largest_2 = np.abs(plane_N2).max(axis=0)
    plane_N2 = np.divide(plane_N2, largest_2, out=np.zeros_like(plane_N2), where=largest_2 > 1e-9)
    total = max(float(values_C.clip(min=0).sum()), 1e-12)
    first, second = (float(value) for value in values_C[:-3:-1].clip(min=0) / total)
    return plane_N2, (first, second)


class KeyMap:
    """The map of a memory's bank, drawn again when the bank has changed."""

    def __init__(self, memory: Memory) -> None:
        self._bank = memory.bank
        self._lock = threading.Lock()
        self._cursor = -1
        self._limit = 0
        self._drawn = MapResponse(points=[], total=0, explained=(0.0, 0.0))

    def draw(self, limit: int) -> MapResponse:
        """At most so many points, the newest memories; the plane is that of all keys.

        Damaged memories are left out; the log names them.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                if self._is_drawn(limit):
                    return self._drawn
                changes = self._bank.key_changes(0)
                try:
                    drawn = self._points(changes.added_ids, changes.added_keys, limit)
                except UnknownIdError:  # forgotten meanwhile
                    continue
                self._cursor, self._limit, self._drawn = changes.cursor, limit, drawn
                break
            return self._drawn

    def _is_drawn(self, limit: int) -> bool:
        """Whether the bank is as it was drawn; tells without reading its keys."""
        if self._cursor < 0 or limit != self._limit:
            return False
        return self._bank.key_changes(self._cursor, limit=1).cursor == self._cursor

    def _points(self, ids: list[int], keys_NC: np.ndarray, limit: int) -> MapResponse:
        if not ids:
            return MapResponse(points=[], total=0, explained=(0.0, 0.0))
        plane_N2, explained = principal_components(keys_NC)
        points = []
        tags: dict[tuple[str, str], tuple[list[str], str]] = {}
        places = range(max(0, len(ids) - limit), len(ids))
        for place, source in zip(places, self._sources(ids[places.start :]), strict=True):
            if source is None:
                continue
            key = (source.document_id, source.namespace)
            try:
                if key not in tags:
                    stored = self._bank.get(source.document_id, namespace=source.namespace)
                    tags[key] = (list(stored.tags), stored.added_at)
            except CorruptRecordError as error:
                _warn(ids[place], error)
                continue
            own_tags, added_at = tags[key]
            points.append(
                MapPoint(
                    memory_id=source.memory_id,
                    document_id=source.document_id,
                    title=source.title,
                    date=source.date,
                    added_at=added_at,
                    namespace=source.namespace,
                    tags=own_tags,
                    x=round(float(plane_N2[place, 0]), 4),
                    y=round(float(plane_N2[place, 1]), 4),
                    excerpt=source.excerpt[:EXCERPT_CHARS],
                )
            )
        return MapResponse(points=points, total=len(ids), explained=explained)

    def _sources(self, ids: list[int]) -> list[MemorySource | None]:
        """Where memories came from, None for damaged ones."""
        try:
            return [*self._bank.sources(ids)]
        except CorruptRecordError:  # which?
            return [self._source(memory_id) for memory_id in ids]

    def _source(self, memory_id: int) -> MemorySource | None:
        try:
            return self._bank.sources([memory_id])[0]
        except CorruptRecordError as error:
            _warn(memory_id, error)
            return None


def _warn(memory_id: int, error: CorruptRecordError) -> None:
    _logger.warning("memory %d is left out of the map: %s", memory_id, error)
