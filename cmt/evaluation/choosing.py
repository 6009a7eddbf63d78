"""Choosing a method's settings on the validation split, never on the stream it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.evaluation.stream import run_stream
from cmt.methods.method import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One choice and what it scored on the validation stream, in percent."""

    settings: dict[str, Any]
    exact_match: float
    f1: float


def trials(
    build: Callable[[Any], Method],
    config: Any,
    candidates: Mapping[str, Sequence[Any]],
    validation: QADataset,
) -> list[Trial]:
    """Every combination of the candidates on the validation stream, best F1 first.

    Args:
        build: Makes the method from a configuration.
        config: The configuration that is changed.
        candidates: Values to try, by the name of the setting.
        validation: Learned and asked about.

    Raises:
        InputError: A setting that the configuration doesn't have, or none to choose from.
    """
    known = [field.name for field in fields(config)]
    for name, values in candidates.items():
        if name not in known:
            raise InputError(f"expected a setting in {', '.join(known)}, got {name!r}")
        if not values:
            raise InputError(f"expected at least one value of {name} to try, got none")
    made: list[Trial] = []
    for values in product(*candidates.values()):
        settings = dict(zip(candidates, values, strict=True))
        result = run_stream(build(replace(config, **settings)), validation)
        made.append(
            Trial(
                settings=settings,
                exact_match=result.scores.exact_match,
                f1=result.scores.f1,
            )
        )
    return sorted(made, key=lambda trial: -trial.f1)
