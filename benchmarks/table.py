r"""The whole table on one machine, in a given time: `stream.py` once for every group of rows.

What isn't timed (training, curves) runs side by side; what is timed has the machine to itself: the
others are stopped meanwhile and go on afterwards. Jobs wait for the results that they build on.
What is measured already is not measured again, so a table that was cut short is gone on with.

    python benchmarks/table.py --data DATA --seconds 1700 --steps 500
    python benchmarks/table.py --data DATA --only ours --only peers --seconds 1200
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
LAST = 60  # seconds before the end no timed job is begun any more
TRIES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of `stream.py`.

    Attributes:
        rows, options: What it measures.
        after: It waits for these results, each ROW-PART.
        timed: Whether it must be alone.
        trains: How many times `--steps` it trains; 0: it is given no length.
    """

    rows: tuple[str, ...]
    options: tuple[str, ...]
    after: tuple[str, ...] = ()
    timed: bool = False
    trains: int = 0


CURVES = ("--parts", "retention", "robustness", "--shares", "0", "1")
RETENTION = ("--parts", "retention")
TIMED = ("--parts", "stream")
FEWER = ("--validation-documents", "100")
SOFT = ("cmt_paper", "mac", "mbc")
ABLATED = ("--parts", "stream", "--no-forgetting")
PAPER_FORMS = tuple(f"cmt_paper_without_{part}" for part in ("objective", "matching", "top_k"))

SETTINGS = {"spans": {"salient_spans"}, "dense_model": {"dense_top1"}}
"""What is told to some rows only."""

JOBS: dict[str, tuple[Job, ...]] = {
    "ours": (
        Job(rows=("kv_trained",), options=CURVES, trains=1),
        Job(rows=("kv_trained", "kv_trained_rerank"), options=TIMED, trains=1, timed=True,
            after=("kv_trained-robustness",)),
        Job(rows=("kv_memory", "kv_memory_rerank"), options=TIMED, timed=True),
        Job(rows=("kv_memory",), options=(*CURVES, "5", "20"), after=("kv_trained-robustness",)),
    ),
    "peers": (
        Job(rows=SOFT, options=CURVES, trains=1),
        Job(rows=(*SOFT, "mac_hierarchical"), options=TIMED, trains=1, timed=True,
            after=("mbc-robustness",)),
    ),
    "gradient": (
        Job(rows=("uniform",), options=(*RETENTION, *FEWER), trains=2),
        Job(rows=("salient_spans",), options=(*RETENTION, *FEWER), trains=2,
            after=("uniform-choice",)),
        Job(rows=("camels",), options=(*RETENTION, *FEWER), trains=2,
            after=("uniform-choice",)),
        *(Job(rows=(row,), options=(*TIMED, *FEWER), trains=2, timed=True,
              after=(f"{row}-retention",)) for row in ("uniform", "salient_spans", "camels")),
    ),
    "text": (
        Job(rows=("closed_book", "gold_text", "bm25_top1", "bm25_top3", "bm25_top5"),
            options=TIMED, timed=True),
        Job(rows=("bm25_top1",), options=CURVES, after=("bm25_top1-stream",)),
    ),
    "dense": (Job(rows=("dense_top1", "dense_top3", "dense_top5"), options=TIMED, timed=True),),
    "ablation": (
        Job(rows=("kv_full", "kv_without_objective", "kv_without_matching"), options=ABLATED,
            trains=1),
        Job(rows=("kv_without_top_k",), options=(*ABLATED, "--questions", "200"), trains=1,
            after=("kv_without_matching-stream",)),
        Job(rows=PAPER_FORMS, options=ABLATED, trains=1),
    ),
}  # fmt: skip
"""Groups in the order they are wanted."""


@dataclass(slots=True)
class Running:
    """A job that was begun."""

    job: Job
    name: str
    process: subprocess.Popen[bytes]
    since: float
    tries: int = 1
    stopped: bool = False

    def signal(self, number: signal.Signals) -> None:
        """Send to the job and all of its own processes."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass  # it has just ended


@dataclass(slots=True)
class Table:
    """The jobs of one invocation and what became of them."""

    options: argparse.Namespace
    more: Sequence[str]
    waiting: list[Job]
    running: list[Running] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Until everything is measured, nothing more can be, or the time is over."""
        try:
            while self._now() < self.options.seconds:
                self._reap()
                self._begin()
                if not self.running:
                    break
                self._give_way()
                time.sleep(0.2)
        finally:
            for own in self.running:
                own.signal(signal.SIGKILL)
                own.process.wait()
                self._say("cut short", own.name)
            for job in self.waiting:
                self._say("not begun", _name(job))

    def _now(self) -> float:
        return time.monotonic() - self.began

    def _alone(self) -> Running | None:
        return next((own for own in self.running if own.job.timed), None)

    def _begin(self) -> None:
        late = self._now() > self.options.seconds - LAST
        for job in list(self.waiting):
            alone = self._alone()
            if not self._is_ready(job) or (alone and (job.timed or self._is_warm(alone))):
                continue
            if job.timed and late:
                continue
            self.waiting.remove(job)
            self._start(job)

    def _start(self, job: Job, tries: int = 1) -> None:
        options, name = self.options, _name(job)
        command = [sys.executable, str(options.script), "--out", str(options.out), *self.more]
        command += [word for row in job.rows for word in ("--method", row)]
        command += [*job.options]
        for setting, rows in SETTINGS.items():
            value = getattr(options, setting)
            command += ["--set", f"{setting}={value}"] if value and rows & {*job.rows} else []
        if job.trains:
            command += ["--steps", str(job.trains * options.steps)]
        options.logs.mkdir(parents=True, exist_ok=True)
        with (options.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.running.append(Running(job, name, process, self._now(), tries))
        self._say("begun", name)

    def _is_ready(self, job: Job) -> bool:
        return all(any(self.options.out.glob(f"{result}-*.json")) for result in job.after)

    def _is_warm(self, alone: Running) -> bool:
        """A timed job's imports need no quiet."""
        return self._now() - alone.since > self.options.quiet_after

    def _give_way(self) -> None:
        """Stop everything beside a timed job, or let it go on."""
        alone = self._alone()
        quiet = alone is not None and self._is_warm(alone)
        for own in self.running:
            if own is not alone and own.stopped != quiet:
                own.signal(signal.SIGSTOP if quiet else signal.SIGCONT)
                own.stopped = quiet

    def _reap(self) -> None:
        for own in list(self.running):
            if (code := own.process.poll()) is None:
                continue
            self.running.remove(own)
            self._say(f"ended with {code}", own.name)
            if code and own.tries < TRIES:
                self._start(own.job, own.tries + 1)
            elif code:
                self.failed.append(own.name)

    def _say(self, what: str, name: str) -> None:
        print(f"{self._now():6.0f} s  {name}: {what}", flush=True)


def _name(job: Job) -> str:
    return "-".join([job.rows[0], *(word for word in job.options if not word.startswith("-"))])


def main() -> None:
    """Measure the groups that are wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any other option is one of stream.py's, given to each of its runs.",
    )
    parser.add_argument("--only", action="append", choices=JOBS, help="a group; default: all")
    parser.add_argument("--seconds", type=float, default=1700)
    parser.add_argument("--steps", type=int, default=500, help="of training, of each trained part")
    parser.add_argument("--out", type=Path, default=HERE / "results/stream")
    parser.add_argument("--logs", type=Path, default=HERE.parent / "runs/table")
    parser.add_argument("--spans", type=Path, help="saved ones, where spaCy isn't")
    parser.add_argument("--dense-model", type=Path, help="folder of the embedding model")
    parser.add_argument("--script", type=Path, default=HERE / "stream.py", help="what a job runs")
    parser.add_argument("--quiet-after", type=float, default=15, metavar="SECONDS",
                        help="a timed job's start that needs no quiet")  # fmt: skip
    options, more = parser.parse_known_args()
    wanted = options.only or list(JOBS)
    table = Table(options, more, [job for group in wanted for job in JOBS[group]])
    table.run()
    if table.failed:
        sys.exit(f"not measured: {', '.join(table.failed)} (logs in {options.logs})")


if __name__ == "__main__":
    main()
