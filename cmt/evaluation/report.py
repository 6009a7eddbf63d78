"""Results to Markdown tables, the published rows beside ours and marked as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmt.evaluation.published import ABLATION, MODELS, PUBLISHED, RETENTION, ROBUSTNESS
from cmt.methods import ABLATIONS, METHODS

Record = Mapping[str, Any]
MEGA = 2**20
CURVES = ("retention", "robustness")


def newest(records: Sequence[Record], part: str, dataset: str) -> dict[str, Record]:
    """The last made record of each row, of those that measured this part on this dataset."""
    found: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: str(record.get("date", ""))):
        if record["part"] == part and record["settings"].get("dataset") == dataset:
            found[record["row"]] = record
    return _in_order(found)


def _in_order(rows: Mapping[str, Record]) -> dict[str, Record]:
    known = [name for name in (*METHODS, *ABLATIONS) if name in rows]
    return {name: rows[name] for name in [*known, *sorted(set(rows) - set(known))]}


def _without_ablations(rows: Mapping[str, Record]) -> dict[str, Record]:
    return {name: record for name, record in _in_order(rows).items() if name not in ABLATIONS}


def markdown(records: Sequence[Record], dataset: str) -> str:
    """All tables of a dataset; parts without a result are left out."""
    kind = dataset.split("-", maxsplit=1)[0]
    known = ("stream", *CURVES, "reading", "costs")
    parts_of = {part: newest(records, part, dataset) for part in known}
    streams = parts_of["stream"]
    methods = _without_ablations(streams)
    ablations = {name: record for name, record in streams.items() if name in ABLATIONS}
    parts = [
        f"## {dataset}",
        _accuracy(methods, kind),
        _costs(_without_ablations({**streams, **parts_of["costs"]})),
        _forgetting(methods),
        _ablation({**methods, **ablations}, kind) if ablations else "",
        _reading(parts_of["reading"]),
        _curve("Retention", parts_of["retention"], "documents", RETENTION),
        _curve("Robustness", parts_of["robustness"], "share", ROBUSTNESS),
        _made(parts_of),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(name: str) -> str:
    """A row's name in the tables."""
    row = METHODS.get(name) or ABLATIONS.get(name)
    return name if row is None else row.title


def _accuracy(methods: Mapping[str, Record], kind: str) -> str:
    lines = _head("Accuracy", "method", "base model", "trained", "documents / questions", "EM",
                  "F1", "prefix EM", "F1, shortest answer", "R@1", "R@5")  # fmt: skip
    for name, record in methods.items():
        result, scores = record["result"], record["result"]["scores"]
        recall = result["recall"]
        lines.append(_line(
            title(name), _model(record), _trained(record),
            f"{result['documents']} / {result['questions']}",
            _with_interval(scores, "exact_match"), _with_interval(scores, "f1"),
            f"{scores['prefix_exact_match']:.1f}", f"{result['shortest_f1']:.1f}",
            *(f"{recall[k]:.1f}" if k in recall else "–" for k in ("1", "5")),
        ))  # fmt: skip
    for method, figures in PUBLISHED.get(kind, {}).items():
        for model, pair in zip(MODELS, figures, strict=True):
            if pair is not None:
                lines.append(_line(f"*published {method}*", f"*{model}*", "–", "*1665*", "–", "–",
                                   f"{pair[0]:.2f}", f"{pair[1]:.2f}", "–", "–"))  # fmt: skip
    note = (
        "Percent, 95% bootstrap interval in brackets. Rows in italics are published figures, on "
        "other base models: their EM is the prefix EM, their F1 is against the shortest answer."
        f"{_shipped(methods)}"
    )
    return "\n".join([*lines, "", note])


def _shipped(methods: Mapping[str, Record]) -> str:
    """Which checkpoint was shipped when its rows were measured."""
    rows_of: dict[str, list[str]] = {}
    for name, record in methods.items():
        if (digest := _checkpoint(name, record)) is not None:
            rows_of.setdefault(digest, []).append(title(name))
    if not rows_of:
        return ""
    told = [
        digest if len(rows_of) == 1 else f"{digest} ({'; '.join(rows)})"
        for digest, rows in sorted(rows_of.items())
    ]
    return (
        " Rows of the shipped checkpoint are of the one that was shipped when they were measured, "
        f"whose files' digest begins with {', '.join(told)}."
    )


def _checkpoint(name: str, record: Record) -> str | None:
    """What the digest of a shipped checkpoint's files begins with; None for other rows."""
    if "shipped checkpoint" not in title(name):
        return None
    return str(record["settings"].get("checkpoint", "")).removeprefix("shipped ")


def _costs(methods: Mapping[str, Record]) -> str:
    if not methods:
        return ""
    lines = _head("What it cost", "method", "hardware", "s a document", "peak MiB learning",
                  "bytes a document", "fixed MiB", "s a question", "text tokens a question",
                  "memory tokens")  # fmt: skip
    for name, record in methods.items():
        cost = record["result"]["costs"]
        peak = cost["learn_peak_bytes"]
        lines.append(_line(
            title(name), str(record["hardware"]), f"{cost['learn_seconds']:.4f}",
            "–" if peak is None else f"{peak / MEGA:.0f}", f"{cost['bytes_stored']:,.0f}",
            f"{cost['fixed_bytes'] / MEGA:.0f}", f"{cost['answer_seconds']:.4f}",
            f"{cost['text_tokens']:.0f}", f"{cost['memory_tokens']:.0f}",
        ))  # fmt: skip
    alone: dict[str, list[str]] = {}
    for name, record in methods.items():
        if record["part"] == "costs":
            result = record["result"]
            on = f"{result['documents']:,} documents and {result['questions']:,} questions"
            alone.setdefault(on, []).append(f"{title(name)} ({_load(result)})")
    notes = [
        f"Measured in a part of its own, on {on}, in brackets the machine's load average in the "
        f"minute before: {'; '.join(names)}."
        for on, names in alone.items()
    ]
    if len(methods) > sum(len(names) for names in alone.values()):
        rows = "The other rows" if alone else "These rows"
        notes.append(f"{rows}: over the whole stream, whatever else ran beside it.")
    return "\n".join([*lines, "", " ".join(notes)])


def _load(result: Record) -> str:
    """How busy the machine was when costs were measured; results of old don't tell."""
    if "load" not in result:
        return "not recorded"
    return f"{result['load']:.1f} on {result['cores']} cores"


def _forgetting(methods: Mapping[str, Record]) -> str:
    told = {name: r for name, r in methods.items() if r["result"].get("knowledge_before")}
    if not told:
        return ""
    lines = _head("Forgetting", "method", "text loss before", "after", "unrelated F1 before",
                  "after", "reader's weights")  # fmt: skip
    for name, record in told.items():
        before, after = (record["result"][f"knowledge_{when}"] for when in ("before", "after"))
        lines.append(_line(
            title(name), f"{before['text_loss']:.3f}", f"{after['text_loss']:.3f}",
            f"{before['unrelated']['f1']:.1f}", f"{after['unrelated']['f1']:.1f}",
            "unchanged" if record["result"]["reader_unchanged"] else "changed",
        ))  # fmt: skip
    note = "Loss in nats a token; unrelated questions with the right passage in a 3-shot prompt."
    return "\n".join([*lines, "", note])


def _ablation(rows: Mapping[str, Record], kind: str) -> str:
    wanted = [name for name in rows if name in ABLATIONS or name in ("cmt_paper", "kv_trained")]
    lines = _head("Ablation", "form", "base model", "trained", "questions", "EM", "F1",
                  "prefix EM", "F1, shortest answer")  # fmt: skip
    for name in wanted:
        result, scores = rows[name]["result"], rows[name]["result"]["scores"]
        lines.append(_line(
            title(name), _model(rows[name]), _trained(rows[name]), str(result["questions"]),
            _with_interval(scores, "exact_match"), _with_interval(scores, "f1"),
            f"{scores['prefix_exact_match']:.1f}", f"{result['shortest_f1']:.1f}",
        ))  # fmt: skip
    for name, (exact, f1) in ABLATION.get(kind, {}).items():
        lines.append(_line(f"*published {name}*", "*Llama-2-7B*", "–", "–", "–", "–",
                           f"{exact:.2f}", f"{f1:.2f}"))  # fmt: skip
    return "\n".join(lines)


def _reading(rows: Mapping[str, Record]) -> str:
    if not rows:
        return ""
    lines = _head("Is the memory read?", "method", "questions", "EM, own memory", "F1, own memory",
                  "EM, another's", "F1, another's")  # fmt: skip
    for name, record in rows.items():
        own, other = record["result"]["own"], record["result"]["another"]
        lines.append(_line(
            title(name), str(record["settings"]["asked"]),
            *(_with_interval(scores, kind) for scores in (own, other)
              for kind in ("exact_match", "f1")),
        ))  # fmt: skip
    note = (
        "Each question answered from the memory of its own document alone, and of a document half "
        "the stream away: what stays is what the method says anyway."
    )
    return "\n".join([*lines, "", note])


def _curve(
    heading: str,
    curves: Mapping[str, Record],
    along: str,
    published: Mapping[str, Mapping[Any, float]],
) -> str:
    """F1 at each point, and the share of the first point's that is kept."""
    if not curves:
        return ""
    columns = sorted({place(point, along) for r in curves.values() for point in r["result"]})
    lines = _head(f"{heading} by {along}", "method", *(f"{column:g}" for column in columns))
    for name, record in curves.items():
        points = {place(point, along): point["scores"]["f1"] for point in record["result"]}
        first = points.get(min(columns, default=0.0), 0.0)  # of the same column for every row
        cells = [
            f"{points[c]:.1f}" + (f" ({100 * points[c] / first:.0f}%)" if first else "")
            if c in points
            else "–"
            for c in columns
        ]
        lines.append(_line(title(name), *cells))
    for method, shares in published.items():
        cells = [f"{shares[c]:g}%" if c in shares else "–" for c in columns]
        lines.append(_line(f"*published {method}, Llama-2-7B, StreamingQA*", *cells))
    return "\n".join([*lines, "", "F1, and the share of the first column's in brackets."])


def place(point: Record, along: str) -> float:
    """Where a point stands on its curve: documents learned, or unrelated ones a related one."""
    if along == "documents":
        return float(point["documents"])
    related = point["documents"] - point["unrelated"]
    return float(round(point["unrelated"] / related, 2))


def _made(parts_of: Mapping[str, Mapping[str, Record]]) -> str:
    """Every command once, with what came of it: rows and parts."""
    of_command: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for part, rows in parts_of.items():
        for name, record in rows.items():
            made_by = (str(record["date"])[:10], record["commit"], record["hardware"],
                       _checkpoint(name, record) or "–", record["command"])  # fmt: skip
            of_command.setdefault(made_by, {}).setdefault(name, []).append(part)
    lines = _head("Made by", "rows", "date", "commit", "hardware", "checkpoint", "command")
    for (*stamp, command), made in of_command.items():
        told = "; ".join(f"{title(name)}: {', '.join(parts)}" for name, parts in made.items())
        lines.append(_line(told, *stamp, f"`{command}`"))
    return "\n".join(lines)


def _with_interval(scores: Record, name: str) -> str:
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.1f} [{low:.1f}, {high:.1f}]"


def _model(record: Record) -> str:
    return str(record["settings"].get("base_model", "–"))


def _trained(record: Record) -> str:
    """How long each of its trained parts was trained; of what isn't, nothing."""
    settings = record["settings"]
    steps, minutes = settings.get("steps"), settings.get("minutes")
    told = [f"{steps:,} steps"] if steps else []
    told += [f"{minutes:g} minutes"] if minutes else []
    return ", ".join(told) or "–"


def _head(heading: str, *columns: str) -> list[str]:
    return [f"### {heading}", "", _line(*columns), _line(*("---" for _ in columns))]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
