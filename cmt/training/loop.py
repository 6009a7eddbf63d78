"""Training the compressor: one loop, top to bottom.

Runs in one process or several (``accelerate launch``), in bfloat16 on a GPU, stops on steps
or on a clock, and resumes from its own checkpoint: on steps, bit-exactly.
"""

from __future__ import annotations

import atexit
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cmt.base_model import BaseModel
from cmt.checkpoint import start_from
from cmt.compressor import Compressor, CompressorConfig
from cmt.datasets.qa import QADataset
from cmt.errors import InputError
from cmt.tensors import move
from cmt.training import compiling
from cmt.training.batch_config import BatchConfig
from cmt.training.data import TrainingBatch, TrainingData
from cmt.training.log import TrainingLog
from cmt.training.state import load_training_state, save_training_state
from cmt.training.step import ObjectiveConfig, TrainingStep


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    """A training run; a recipe is a file whose `recipe()` returns one.

    Attributes:
        base_model: As for `BaseModel.load`.
        start_from: Folder of a checkpoint of the same form whose weights the run begins with, for
            its own schedule; None begins afresh.
        held_out_articles: Whole articles of the data kept for validation; `cmt train` splits
            them off before training and scores them after.
        steps: Stop after so many steps; None: on the clock alone.
        minutes: Stop after so many minutes of training; None: on steps alone.
        learning_rate: Peak; warmed up over `warmup_steps`, then a cosine to 2% of it.
        compile: Compile the decoder layers (a minute to start, faster after; CUDA only).
        workers: Processes that make batches ahead; 0 makes them in line.
        save_every: Steps between checkpoints that a run can resume from; 0: only at the end.
        log_every: Steps between lines of metrics.jsonl.
    """

    base_model: str = "smollm2-135m"
    start_from: str | None = None
    held_out_articles: int = 0
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    clip_norm: float = 1.0
    seed: int = 0
    compile: bool = False
    workers: int = 0
    save_every: int = 0
    log_every: int = 20

    def __post_init__(self) -> None:
        """Refuse a run that would never stop, or not begin."""
        if self.steps is None and self.minutes is None:
            raise InputError("expected steps or minutes to stop after, got neither")
        for name in ("steps", "minutes", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"expected {name} above 0, got {value}")
        for name, least in (("log_every", 1), ("save_every", 0), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} of at least {least}, got {getattr(self, name)}")


def learning_rate_factor(step: int, done: float, warmup_steps: int) -> float:
    """Warm-up times cosine; `done` is the share of the run that is over, in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * max(0.02, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(
    config: TrainingConfig,
    dataset: QADataset,
    folder: str | Path,
    *,
    extra: QADataset | None = None,
    texts: Sequence[str] = (),
    resume: bool = False,
    on_step: Callable[[int, Compressor], None] | None = None,
) -> Compressor:
    """Train a compressor; `checkpoint.save_pretrained` keeps what comes back.

    Args:
        config: The run.
        dataset: Documents with questions, e.g. SQuAD's training part.
        folder: Where the state to resume from and the metrics go.
        extra: Further questions, as for `TrainingData`.
        texts: Plain texts to retell.
        resume: Go on from the state in `folder`.
        on_step: Called after each step with the number of steps done.

    Returns:
        The trained compressor, laid over a freshly loaded base model.

    Raises:
        InputError: Too few documents, or none of a token.
        CheckpointError: Nothing to resume from, the state of another run, or a checkpoint to start
            from that isn't one of this form.
        ModelError: The base model can't be had.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = _set_up(config, dataset, extra, texts)
    accelerator, process = run.accelerator, run.accelerator.process_index
    step, before = 0, 0.0
    if resume:
        step, before = load_training_state(folder / "state", run.module, run.optimizer, process)
    model = accelerator.prepare_model(run.module)
    torch.manual_seed(config.seed + 1_000_003 * process + step)
    batches = iter(_loader(run.data, config, step))
    main = accelerator.is_main_process
    log = TrainingLog(folder / "metrics.jsonl" if main else None, step=step, every=config.log_every)
    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not main)
    began = time.monotonic() - before
    with log, bar:
        while True:
            done = _done(config, step, _agreed(time.monotonic() - began, accelerator))
            if done >= 1:
                break
            rate = config.learning_rate * learning_rate_factor(step, done, config.warmup_steps)
            torch.manual_seed((config.seed << 32) + step * 1024 + process)
            batch = move(next(batches), accelerator.device)
            log.add(_optimise(model, batch, run.optimizer, accelerator, rate, config.clip_norm))
            step += 1
            bar.update()
            if log.is_due(step) or step == config.steps:
                documents = (
                    config.batch.documents + config.batch.extra
                ) * accelerator.num_processes
                line = log.write(step, time.monotonic() - began, rate, documents)
                bar.set_postfix(answer=f"{line['answer']:.3f}", found=line["found_in_batch"])
            if config.save_every and step % config.save_every == 0:
                run.save(folder, step, time.monotonic() - began)
            if on_step is not None:
                on_step(step, run.compressor)
    run.save(folder, step, time.monotonic() - began)
    accelerator.wait_for_everyone()
    if config.compile:
        compiling.put_back(run.compressor)
    if main:
        (folder / "training.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    return run.compressor


@dataclass(kw_only=True, slots=True)
class _Run:
    """What a run is made of."""

    accelerator: Accelerator
    compressor: Compressor
    data: TrainingData
    module: TrainingStep
    optimizer: torch.optim.Optimizer

    def save(self, folder: Path, step: int, seconds: float) -> None:
        """Leave in `folder` what a run can resume from."""
        process = self.accelerator.process_index
        save_training_state(folder / "state", self.module, self.optimizer, step, seconds, process)


def _set_up(
    config: TrainingConfig, dataset: QADataset, extra: QADataset | None, texts: Sequence[str]
) -> _Run:
    """Load the base model, lay a fresh compressor over it, tokenise the data."""
    torch.manual_seed(config.seed)
    accelerator = Accelerator(
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
        kwargs_handlers=[  # the one buffer, stale keys, is each process's own
            DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        ],
    )
    if accelerator.num_processes > 1:  # else its threads may abort a process that ends
        atexit.register(accelerator.state.destroy_process_group)
    base = BaseModel.load(config.base_model, device=accelerator.device)
    compressor = Compressor(base, config.compressor)
    compressor.end_token = base.tokenizer.eos_token_id
    if config.start_from is not None:
        start_from(compressor, config.start_from)
    data = TrainingData(
        dataset,
        base.tokenizer,
        config.batch,
        memory_tokens=config.compressor.memory_tokens,
        max_piece_tokens=config.compressor.max_piece_tokens,
        memory_sizes=config.compressor.memory_sizes,
        extra=extra,
        texts=texts,
        seed=config.seed,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    _ = base.sink  # once, before any layer is compiled
    if config.compile:
        compiling.compile_layers(base, compressor)
    module = TrainingStep(
        base, compressor, config.objectives, len(data.documents), compiled=config.compile
    )
    optimizer = torch.optim.AdamW(
        list(compressor.parameters()),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
        fused=accelerator.device.type == "cuda",
    )
    return _Run(
        accelerator=accelerator,
        compressor=compressor,
        data=data,
        module=module,
        optimizer=optimizer,
    )


def _optimise(
    model: nn.Module,
    batch: TrainingBatch,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    learning_rate: float,
    clip_norm: float,
) -> dict[str, torch.Tensor]:
    """One step: forward, backward, update. Returns its measurements."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with accelerator.autocast():
        report: dict[str, torch.Tensor] = model(batch)
    accelerator.backward(report["loss"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {**report, "gradient_norm": norm}


def _loader(data: TrainingData, config: TrainingConfig, start: int) -> DataLoader[TrainingBatch]:
    """Batches from step `start` on, without end."""
    return DataLoader(
        data,
        batch_size=None,
        sampler=range(start, 2**31),
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        pin_memory=False,
    )


def _done(config: TrainingConfig, step: int, elapsed: float) -> float:
    """Share of the run that is over: by steps or by the clock, whichever is further."""
    by_steps = 0.0 if config.steps is None else step / config.steps
    by_clock = 0.0 if config.minutes is None else elapsed / (60 * config.minutes)
    return max(by_steps, by_clock)


def _agreed(elapsed: float, accelerator: Accelerator) -> float:
    """The main process's clock, in every process: all must stop after the same step."""
    if accelerator.num_processes == 1:
        return elapsed
    clock = torch.tensor([elapsed], dtype=torch.float64, device=accelerator.device)
    return float(broadcast(clock).item())
