"""Kills, full disks, truncated files, flipped bits: what is lost, what is found, what still serves.

Prints JSON with the counts. Nothing acknowledged may be lost, and no damage may go unnoticed: the
counts named `lost` and `silent` are to be 0. A tiny random model compresses, so that a run takes
minutes; its documents are added, replaced, superseded and forgotten.

    python benchmarks/crash_campaign.py --kills 200 --disks 20 --truncations 50 --flips 200
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from matching import machine

from cmt import Document
from cmt.bank import Bank, Problem
from cmt.errors import BankError, CMTError
from cmt.generation import Sampling
from cmt.memory import Memory
from cmt.opening import fingerprint

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import small

QUESTIONS = [f"Who built the tower of {name}?" for name in small.NAMES]
SHORT = Sampling(max_new_tokens=2)
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "cmt.memory", "tests.small"])  # __main__ is not

State = dict[str, tuple[int, ...]]  # id -> its versions, the one in force last
Step = tuple[str, int, int]  # what, which document, which version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--truncations", type=int, default=50)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "kill_9": kills(folder / "kills.sqlite", arguments.kills, draw),
            "full_disk": full_disks(folder, arguments.disks, draw),
        }
        sound = folder / "sound.sqlite"
        compressor = small.compressor(memory_tokens=64)  # most of the file is tensors, as it is
        with Memory(Bank.open(sound, fingerprint(compressor)), compressor) as memory:
            for step in (step for number in range(120) for step in steps(number)):
                take(memory, step)
            memory.bank.wipe_log()
        original = contents(sound)
        for what, count in (("truncated", arguments.truncations), ("flipped_bit", arguments.flips)):
            total: Counter[str] = Counter()
            for _ in range(count):
                damaged = damage(sound, folder / "damaged.sqlite", what, draw)
                total.update(examine(damaged, original, compressor))
            result[what] = dict(sorted(total.items()))
        result["machine"] = machine()
    print(json.dumps(result, indent=1))


# The ingest, as steps that are known beforehand.


def steps(number: int) -> Iterator[Step]:
    """What is done to the bank at a number: add, and now and then replace, supersede, forget."""
    yield "add", number, 0
    if number % 3 == 2:
        yield "replace", number - 1, 1
    if number % 4 == 3:
        yield "supersede", number - 3, 2
    if number % 7 == 6:
        yield "forget", number - 2, 0


def text(number: int, version: int) -> str:
    name = small.NAMES[number % len(small.NAMES)]
    return f"The tower of {name} {number} was built in {1800 + number % 200} in version {version}."


def take(memory: Memory, step: Step) -> None:
    """Do one step; it is durable on return, and doing it again changes nothing."""
    what, number, version = step
    if what == "forget":
        memory.forget(f"{number}")
        return
    known = {document.text for document in versions_of(memory.bank, f"{number}")}
    if text(number, version) in known and version == 0:
        return
    document = Document(text=text(number, version), id=f"{number}", supersede=what == "supersede")
    memory.add(document)


def versions_of(bank: Bank, document_id: str) -> list[Document]:
    try:
        return [stored.document() for stored in bank.history(document_id)]
    except ValueError:  # UnknownIdError
        return []


def after(state: State, step: Step) -> State:
    """The state that a step leads to."""
    what, number, version = step
    state, name = dict(state), f"{number}"
    if what == "forget":
        state.pop(name, None)
    elif what == "supersede":
        state[name] = (*state.get(name, ()), version)
    else:
        state[name] = (*state.get(name, ())[:-1], version)
    return state


def ingest(path: Path, first: int, report: Connection, most_bytes: int | None = None) -> None:
    """Take step after step, reporting each; with `most_bytes`, until no file may grow further."""
    unlimited = resource.RLIM_INFINITY
    compressor = small.compressor()
    todo = [step for number in range(100_000) for step in steps(number)][first : first + 20_000]
    with Memory(Bank.open(path, fingerprint(compressor)), compressor) as memory:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, unlimited))
        for done, step in enumerate(todo, start=first + 1):
            try:
                take(memory, step)
            except BankError as error:
                resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
                take(memory, step)  # there is room again: it goes on in the same process
                report.send((done, str(error)))
                return
            report.send((done, None))


def kills(path: Path, count: int, draw: random.Random) -> dict[str, int]:
    total: Counter[str] = Counter(kills=count)
    todo = [step for number in range(100_000) for step in steps(number)]
    acknowledged, state = 0, {}
    for _ in range(count):
        ours, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=ingest, args=(path, acknowledged, theirs))
        process.start()
        theirs.close()
        if draw.random() < 0.8:  # else maybe while the bank is opened or made
            ours.poll(60)
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        process.join()
        before = acknowledged
        with contextlib.suppress(EOFError):
            while True:
                acknowledged = ours.recv()[0]
        for step in todo[before:acknowledged]:
            state = after(state, step)
        total["acknowledged_steps"] += acknowledged - before
        if not path.exists():
            continue
        found, problems = held(path)
        unacknowledged = after(state, todo[acknowledged])
        total["damage_found"] += problems
        total["lost"] += found not in (state, unacknowledged)
        if found == unacknowledged != state:  # on disk, but the report was lost
            total["done_but_not_yet_acknowledged"] += 1
            acknowledged, state = acknowledged + 1, unacknowledged
    return dict(total)


def held(path: Path) -> tuple[State, int]:
    """What a bank holds, each memory read, and how many problems verify finds."""
    state: State = {}
    try:
        with Bank.open(path, None) as bank:
            for entry in bank.entries():
                if not isinstance(entry, Problem):
                    document, _ = entry
                    version = int(document.text.rstrip(".").rsplit(maxsplit=1)[1])
                    state[document.id] = (*state.get(document.id, ()), version)
            return state, len(bank.verify())
    except BankError:  # killed before there was a bank
        return {}, 0


def full_disks(folder: Path, count: int, draw: random.Random) -> dict[str, int]:
    total: Counter[str] = Counter(disks=count)
    todo = [step for number in range(100_000) for step in steps(number)]
    for number in range(count):
        path = folder / f"disk-{number}.sqlite"
        ours, theirs = processes.Pipe(duplex=False)
        most = draw.randrange(300_000, 1_500_000)
        process = processes.Process(target=ingest, args=(path, 0, theirs, most))
        process.start()
        theirs.close()
        acknowledged, refusal = 0, None
        with contextlib.suppress(EOFError):
            while True:
                acknowledged, refusal = ours.recv()
        process.join()
        state: State = {}
        for step in todo[:acknowledged]:
            state = after(state, step)
        found, problems = held(path)
        total["acknowledged_steps"] += acknowledged
        total["refused_by_name"] += "nothing of this change was written" in (refusal or "")
        total["lost"] += found != state
        total["damage_found"] += problems
    return dict(total)


# Damage, and what is left after it.


def contents(path: Path) -> dict[tuple[str, str], list[torch.Tensor]]:
    """Every version's text and tensors."""
    with Bank.open(path, None, read_only=True) as bank:
        return {
            (entry[0].id, entry[0].text): [piece.memory for piece in entry[1]]
            for entry in bank.entries()
            if not isinstance(entry, Problem)
        }


def damage(sound: Path, path: Path, what: str, draw: random.Random) -> Path:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    shutil.copy(sound, path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        place = draw.randrange(size)
        if what == "truncated":
            file.truncate(place)
        else:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << draw.randrange(8)]))
    return path


def examine(path: Path, original: dict, compressor: object) -> Counter[str]:
    """One damaged file: is it found and named, what is still served, is anything wrong silently."""
    total: Counter[str] = Counter(files=1)
    documents: dict = {}
    try:
        with Bank.open(path, None, read_only=True) as bank:
            problems = bank.verify()
            for entry in bank.entries():
                if isinstance(entry, Problem):
                    continue
                documents[entry[0].id, entry[0].text] = [piece.memory for piece in entry[1]]
    except CMTError as error:
        total["refused_when_opened_or_listed"] += 1
        sys.stderr.write(f"{path}: {error}\n")
        total["documents_lost"] += len(original) - len(documents)
        return total
    intact = sum(
        key in original and all(map(torch.equal, tensors, original[key]))
        for key, tensors in documents.items()
    )
    total["silent"] += len(documents) - intact  # read without an error, but not as written
    if intact == len(original) and not problems:
        total["harmless"] += 1
    elif not problems:
        total["silent"] += 1
    else:
        total["found_by_verify"] += 1
        total["with_a_document_named"] += any(problem.document_id for problem in problems)
    total["documents_intact"] += intact
    total["documents_lost"] += len(original) - intact
    total.update(asked(path, compressor))
    return total


def asked(path: Path, compressor: object) -> Counter[str]:
    total: Counter[str] = Counter(questions=len(QUESTIONS))
    try:
        bank = Bank.open(path, fingerprint(compressor), read_only=True)
        with Memory(bank, compressor) as memory:
            for question in QUESTIONS:
                try:
                    memory.ask(question, sampling=SHORT)
                    total["questions_answered"] += 1
                except BankError as error:
                    sys.stderr.write(f"{error}\n")
                    total["questions_refused_by_name"] += 1
    except CMTError:
        total["questions_refused_by_name"] += len(QUESTIONS)
    return total


if __name__ == "__main__":
    main()
