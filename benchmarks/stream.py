r"""Methods on a stream of documents: one command from data to results.

A row's parts (its settings' choice on the validation split, the stream with what it cost and
what was forgotten, retention, robustness, costs alone) are a JSON file each in
``benchmarks/results/stream``, found again by settings and commit: a run that was cut short goes on
where it stopped. Trained weights, and all of a smoke run, are in ``runs``: docs/benchmark.md.

    python benchmarks/stream.py --method cmt_paper --data DATA --device cuda --minutes 5
    python benchmarks/stream.py --all --smoke --data DATA
    python benchmarks/report.py
"""

from __future__ import annotations

import argparse
import gc
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import stream_data
import torch
from stream_options import SHARES, SMOKE, Sizes, candidates, options, parsed
from transformers.utils import logging as transformers_logging

from cmt.base_model import BaseModel
from cmt.datasets import QADataset
from cmt.errors import CMTError
from cmt.evaluation import stream as looks
from cmt.evaluation.choosing import trials
from cmt.evaluation.forgetting import Knowledge, knowledge
from cmt.evaluation.results import ResultStore, code_commit, shown, stamp, without_predictions
from cmt.evaluation.stream_costs import measure_costs
from cmt.methods import ABLATIONS, METHODS, Materials, Method, Row
from cmt.methods.answering import AnswerConfig
from cmt.methods.few_shot import solved_examples
from cmt.methods.salient_spans import save_spans
from cmt.records import Document
from cmt.training import TrainingConfig

ROWS = {**METHODS, **ABLATIONS}


class Run:
    """One invocation: options, data, and where results go."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(
            options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        self.sizes = SMOKE if options.smoke else Sizes()
        given = {f.name: getattr(options, f.name, None) for f in fields(Sizes)}
        self.sizes = replace(self.sizes, **{n: v for n, v in given.items() if v is not None})
        commit = options.commit or code_commit()
        self.store = ResultStore(options.out, commit)
        self.stamp = stamp(self.device, commit)
        self.data = stream_data.load(
            options.data,
            options.dataset,
            options.path,
            self.sizes.documents,
            self.sizes.questions,
            self.sizes.validation_documents,
        )
        self._known: dict[str, Knowledge] = {}
        self._unrelated: dict[int, list[Document]] = {}

    def materials(self, asked: QADataset) -> Materials:
        """Fresh ones, to be asked about a stream: a method may lay adapters over the base model."""
        options, steps = self.options, 2 if self.options.smoke else self.options.steps
        return Materials(
            base=BaseModel.load(options.model, device=self.device),
            training=self.data.training,
            qa_training=self.data.qa_training,
            asked=asked,
            folder=options.states,
            steps=options.steps or steps,
            minutes=options.minutes,
            checkpoint=options.checkpoint,
            seed=options.seed,
            code=self.code(),
            answers=AnswerConfig(batch_size=options.batch_size),
            recipe=self.recipe(),
        )

    def known(self, reader: BaseModel, digest: str) -> Knowledge:
        """What a reader of these weights knows by itself: the same weights, the same figures."""
        if digest not in self._known:
            self._known[digest] = knowledge(
                reader,
                stream_data.plain_text(self.options.data),
                stream_data.unrelated_questions(self.options.data, self.sizes.unrelated_questions),
                solved_examples(self.data.training, 3),
                AnswerConfig(batch_size=self.options.batch_size),
                most_tokens=self.sizes.text_tokens,
            )
        return self._known[digest]

    def unrelated(self, how_many: int) -> list[Document]:
        """Documents to mix in; read once."""
        if how_many not in self._unrelated:
            self._unrelated[how_many] = stream_data.unrelated_documents(
                self.options.data, how_many, self.data.stream
            )
        return self._unrelated[how_many]

    def code(self) -> str:
        """The commit; of changed or unknown code this very run, so that it trains its own."""
        commit = self.store.commit
        return commit if self.store.is_known() else f"{commit} {self.stamp.date}"

    def recipe(self) -> TrainingConfig:
        """How key/value memory is trained; little of everything in a smoke run."""
        made = runpy.run_path(str(self.options.recipe))["recipe"]()
        assert isinstance(made, TrainingConfig), "a recipe returns a TrainingConfig"
        if self.options.smoke:
            batch = replace(made.batch, documents=4, texts=0, most_memories=2)
            return replace(made, batch=batch, compile=False, workers=0, log_every=1)
        return made

    def config(self, row: Row) -> Any:
        """The row's configuration with what the command line changes."""
        config = row.config
        if self.options.smoke:
            small = {"documents": 4, "batch_documents": 2}
            config = replace(config, **{n: v for n, v in small.items() if hasattr(config, n)})
        return replace(config, **dict(parsed(config, text) for text in self.options.set))

    def settings(self, config: Any, **more: Any) -> dict[str, Any]:
        """What a result is known by."""
        options = self.options
        return {
            "dataset": self.data.stream.name,
            "questions": len(self.data.stream.questions),
            "base_model": shown(options.model),
            "checkpoint": stream_data.checkpoint_name(options.checkpoint, options.model, config),
            "recipe": stream_data.recipe_name(options.recipe, config),
            "minutes": options.minutes,
            "steps": 2 if options.smoke and not options.steps else options.steps,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "device": self.device.type,
            "config": stream_data.told(config),
            **more,
        }

    def found(self, name: str, part: str, settings: Any) -> Any:
        """The result measured before."""
        return None if self.options.again else self.store.load(name, part, settings)

    def cached(self, name: str, part: str, settings: Any, measure: Callable[[], Any]) -> Any:
        """The result measured before, or a new one, saved at once."""
        found = self.found(name, part, settings)
        if found is not None:
            print(f"{name} {part}: measured before", flush=True)
            return found
        result = without_predictions(measure())
        file = self.store.save(name, part, settings, result, self.stamp)
        print(f"{name} {part}: {file.name}", flush=True)
        return result


def choose(run: Run, name: str, row: Row, config: Any) -> Any:
    """The configuration with what did best on the validation split."""
    tried = {} if run.options.no_choice else candidates(run.options, row.candidates, config)
    if not tried:
        return config

    def measure() -> Any:
        return trials(
            lambda made: built(row, run.materials(run.data.validation), made),
            config,
            tried,
            run.data.validation,
        )

    held_out = run.data.validation  # whatever stream is learned later, the choice is the same
    settings = run.settings(config, candidates=tried)
    settings |= {"dataset": held_out.name, "questions": len(held_out.questions)}
    results = run.cached(name, "choice", settings, measure)
    for trial in results:
        print(f"  {trial['settings']}: EM {trial['exact_match']:.1f} F1 {trial['f1']:.1f}")
    return replace(config, **results[0]["settings"])


def built(row: Row, materials: Materials, config: Any) -> Method:
    """The method; what a method before it held is let go first."""
    gc.collect()
    if materials.base.device.type == "cuda":
        torch.cuda.empty_cache()
    torch.manual_seed(materials.seed)  # what begins at random begins alike in any order of rows
    return row.build(materials, config)


def measure_row(run: Run, name: str) -> None:
    """Every part that was asked for, of one row."""
    row, options, sizes = ROWS[name], run.options, run.sizes
    config = choose(run, name, row, run.config(row))
    made: list[Method] = []

    def method() -> Method:
        if not made:
            made.append(built(row, run.materials(run.data.stream), config))
        return made[0]

    data = run.data.stream
    forgetting, step = not options.no_forgetting, min(sizes.retention_step, len(data.documents))
    known = {
        "stream": run.settings(
            config, text_tokens=sizes.text_tokens, unrelated=sizes.unrelated_questions * forgetting
        ),
        "retention": run.settings(config, step=step),
    }
    missing = [part for part in known if run.found(name, part, known[part]) is None]
    shared = {*missing} & {*options.parts} >= {*known}
    points: list[looks.Point] = []  # of retention, where both are measured in one pass
    if "stream" in options.parts:
        result = run.cached(
            name, "stream", known["stream"],
            lambda: whole(run, method(), forgetting, points, step=step if shared else 0),
        )  # fmt: skip
        scores = result["scores"]
        print(f"  EM {scores['exact_match']:.1f} prefix EM {scores['prefix_exact_match']:.1f} "
              f"F1 {scores['f1']:.1f} recall {result['recall']}", flush=True)  # fmt: skip
    if "retention" in options.parts:
        run.cached(
            name, "retention", known["retention"],
            lambda: points or looks.retention(method(), data, first=step, step=step),
        )  # fmt: skip
    if "robustness" in options.parts:
        shares = (0.0, 1.0) if options.smoke and not options.shares else options.shares or SHARES
        few = looks.sampled(data, sizes.curve_questions)
        most = round(max(shares) * len(data.documents))
        settings = run.settings(config, shares=list(shares), asked=len(few.questions))
        run.cached(
            name, "robustness", settings,
            lambda: looks.robustness(method(), few, run.unrelated(most), shares),
        )  # fmt: skip
    if "reading" in options.parts:
        few = looks.sampled(data, sizes.curve_questions)
        run.cached(
            name, "reading", run.settings(config, asked=len(few.questions)),
            lambda: looks.reading(method(), few),
        )  # fmt: skip
    if "costs" in options.parts:
        learned, asked = sizes.cost_documents, sizes.cost_questions
        run.cached(
            name, "costs", run.settings(config, cost_documents=learned, cost_questions=asked),
            lambda: measure_costs(method(), data, learned=learned, asked=asked),
        )  # fmt: skip


def whole(
    run: Run, method: Method, forgetting: bool, points: list[looks.Point], *, step: int
) -> dict[str, Any]:
    """The stream, what the reader knew before and after; with a step, points of retention too."""
    result = {}
    method.reset()
    before = method.reader.digest()
    if forgetting:
        result["knowledge_before"] = run.known(method.reader, before)
    data = run.data.stream
    if step:
        streamed, points[:] = looks.stream_and_retention(method, data, first=step, step=step)
    else:
        streamed = looks.run_stream(method, data)
    result |= asdict(streamed)
    after = method.reader.digest()
    if forgetting:
        result["knowledge_after"] = run.known(method.reader, after)
    return {**result, "reader_unchanged": before == after}


def main() -> None:
    """Measure the rows that were asked for; a row that can't be is told, the others go on."""
    chosen = options(__doc__, list(ROWS))
    transformers_logging.disable_progress_bar()
    # cuDNN's attention builds a plan for each new shape, and every generated token is one
    torch.backends.cuda.enable_cudnn_sdp(False)
    if chosen.list:
        print("\n".join(f"{name:<28} {row.title}" for name, row in ROWS.items()))
        return
    names = [*chosen.method, *(METHODS if chosen.all else [])]
    names += [*ABLATIONS] if chosen.ablations else []
    if chosen.data is None or not (names or chosen.save_spans):
        sys.exit("expected --data and --method, --all or --ablations (--list names the rows)")
    run = Run(chosen)
    if chosen.save_spans:
        parts = (run.data.stream, run.data.validation)
        texts = [document.text for part in parts for document in part.documents]
        others = stream_data.unrelated_documents(chosen.data, 10**6, run.data.stream)
        texts += [document.text for document in others]
        save_spans(texts, chosen.save_spans)
        return
    failed = []
    for name in dict.fromkeys(names):
        try:
            measure_row(run, name)
        except CMTError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
