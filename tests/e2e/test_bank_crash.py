"""The bank under fire: killed processes, full disks, readers beside a writer, flipped bits.

The processes are real ones, forked from a server that has imported torch once. A worker
reports through a pipe; what it has reported, the bank has acknowledged.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from cmt.bank import Bank, preparing
from cmt.errors import BankError, CorruptRecordError, UnknownIdError
from cmt.matching import KeyIndex
from cmt.records import Document, EncodedPiece
from tests.unit.bank_pieces import FINGERPRINT, make_key, make_piece

resource = pytest.importorskip("resource", reason="limits and kill -9 are of Unix")

REPOSITORY = Path(__file__).parents[2]
BATCH = 3
LONG = 40  # pieces of a long document
LARGE = (4, 2, 4, 16, 64)  # 64 KiB: long enough to write that a kill hits the middle
SECONDS = 120  # until a hanging process fails a test

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def document(name: str, version: int, seed: int) -> tuple[Document, list[EncodedPiece]]:
    text = f"{name} in version {version}"
    return Document(text=text, id=name), [make_piece(text, seed, shape=LARGE)]


def seed_of(document_id: str) -> int:
    """Documents are called seed-number."""
    return int(document_id.split("-", maxsplit=1)[0])


# --- the workers


def add_batches(path: Path, report: Connection) -> None:
    """Add batch after batch, and after each replace its texts."""
    with Bank.open(path, FINGERPRINT) as bank:
        first = bank.count().documents // BATCH
        for number in range(first, first + 10_000):
            for version in range(2):
                bank.add([document(f"{number}-{n}", version, number) for n in range(BATCH)])
                report.send((number, version))


def add_long_documents(path: Path, report: Connection) -> None:
    """Add documents whose pieces wait in a file, and tell where each is."""
    preparing.IN_MEMORY = 1
    with Bank.open(path, FINGERPRINT) as bank:
        for number in range(bank.count().documents, 10_000):
            text = f"{number}-long in version 0"

            def pieces(text=text, number=number):
                for place in range(LONG):
                    if place == LONG // 2:
                        report.send(("begun", number))
                    yield make_piece(text, number, shape=LARGE)
                report.send(("drawn", number))

            bank.add([(Document(text=text, id=f"{number}-long"), pieces())])
            report.send(("added", number))


def search_until_done(path: Path, report: Connection) -> None:
    """Search and read while others write; what is read must fit together."""
    with Bank.open(path, FINGERPRINT, read_only=True) as bank:
        index = KeyIndex(bank)
        searches = 0
        while bank.count().documents < 40 or searches < 5:
            (hits,) = index.search(make_key(searches)[None], 5)
            ids = [hit.memory_id for hit in hits]
            with contextlib.suppress(UnknownIdError):  # deleted since the search
                for memory, source in zip(bank.memories(ids), bank.sources(ids), strict=True):
                    expected = make_piece("", seed_of(memory.document_id), shape=LARGE)
                    assert torch.equal(memory.memory, expected.memory)
                    assert source.excerpt.startswith(f"{memory.document_id} in version")
            searches += 1
        report.send(searches)


def add_a_few(path: Path, report: Connection) -> None:
    """Create or open the bank and add to it while others do the same."""
    with Bank.open(path, FINGERPRINT) as bank:
        for n in range(5):
            bank.add([document(f"{os.getpid()}-{n}", 0, n)])
            report.send(f"{os.getpid()}-{n}")


def add_until_file_limit(path: Path, report: Connection) -> None:
    """Add until no file may grow any more, then lift that limit and add again."""
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, unlimited))
    lift = (resource.RLIMIT_FSIZE, (unlimited, unlimited))
    report.send(fill(path, lambda: resource.setrlimit(*lift)))


def add_beyond_file_limit(path: Path, report: Connection) -> None:
    """Add a document whose memories no file may take, then one that fits."""
    preparing.IN_MEMORY = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    with Bank.open(path, FINGERPRINT) as bank:
        pieces = (make_piece("long", 0, shape=LARGE) for _ in range(LONG))
        with pytest.raises(BankError) as refusal:
            bank.add([(Document(text="long"), pieces)])
        bank.add([document("0-after", 0, 0)])
    report.send(str(refusal.value))


def add_until_disk_full(path: Path) -> None:
    """Add until the disk is full, then make room and add again."""
    ballast = path.with_name("ballast")
    ballast.write_bytes(bytes(1 << 20))
    refusal, added = fill(path, ballast.unlink)
    sys.stdout.write(f"{refusal}\n{added}\n")


def fill(path, make_room) -> tuple[str, int]:
    """The refusal met, and how many batches of two were added before."""
    added = 0
    with Bank.open(path, FINGERPRINT) as bank:
        with pytest.raises(BankError) as refusal:
            while True:
                bank.add([document(f"{added}-{n}", 0, added) for n in range(2)])
                added += 1
        assert bank.count().documents == 2 * added
        assert len(bank.memories(bank.key_changes(0).added_ids)) == 2 * added
        make_room()
        bank.add([document("0-after", 0, 0)])
        return str(refusal.value), added


def check_filled(path: Path, refusal: str, added: int) -> None:
    assert "nothing of this change was written" in refusal
    assert added > 0
    with Bank.open(path, FINGERPRINT) as bank:
        expected = {f"{number}-{n}" for number in range(added) for n in range(2)} | {"0-after"}
        assert {stored.id for stored in bank.documents()} == expected
        assert bank.verify() == []


@contextlib.contextmanager
def started(worker, path: Path):
    """A process at work and the end of the pipe on which it reports."""
    ours, theirs = processes.Pipe(duplex=False)
    process: ForkServerProcess = processes.Process(target=worker, args=(path, theirs))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def everything(reports: Connection) -> list:
    """What is reported until the worker ends."""
    received = []
    with contextlib.suppress(EOFError):
        while reports.poll(SECONDS):
            received.append(reports.recv())
    return received


# --- the tests


def test_what_was_acknowledged_survives_kill_9(tmp_path):
    path = tmp_path / "bank.sqlite"
    acknowledged: dict[int, int] = {}
    for kill in range(6):
        with started(add_batches, path) as (process, reports):
            received = []
            for _ in range(2 + kill):
                assert reports.poll(SECONDS)
                received.append(reports.recv())
            time.sleep(0.003 * kill)
            process.kill()
            received += everything(reports)
            process.join()
            assert process.exitcode == -signal.SIGKILL
        acknowledged.update(received)
        check_acknowledged(path, acknowledged, kills=kill + 1)
    assert len(acknowledged) >= 12


def check_acknowledged(path: Path, acknowledged: dict[int, int], kills: int) -> None:
    """Every batch is whole and at least as new as acknowledged, every tensor as it was."""
    with Bank.open(path, FINGERPRINT) as bank:
        assert bank.verify() == []
        versions: dict[int, list[str]] = {}
        for stored in bank.documents():
            name, version = stored.text.split(" in version ")
            assert (stored.id, stored.memories) == (name, 1)
            versions.setdefault(seed_of(name), []).append(version)
        for number, found in versions.items():
            assert found in (["0"] * BATCH, ["1"] * BATCH)
            assert int(found[0]) >= acknowledged.get(number, 0)
        assert acknowledged.keys() <= versions.keys()
        assert len(versions) <= len(acknowledged) + kills  # one each may have lost its report
        for memory in bank.memories(bank.key_changes(0).added_ids):
            expected = make_piece("", seed_of(memory.document_id), shape=LARGE)
            assert torch.equal(memory.memory, expected.memory)


@pytest.mark.parametrize("moment", ["begun", "drawn"])
def test_a_long_document_is_there_as_a_whole_or_not_at_all_after_kill_9(tmp_path, moment):
    """Killed while its pieces wait in the file, and while they are written."""
    path = tmp_path / "bank.sqlite"
    acknowledged: set[int] = set()
    for kill in range(4):
        with started(add_long_documents, path) as (process, reports):
            received = []
            while received.count(moment) < 2:
                assert reports.poll(SECONDS)
                where, number = reports.recv()
                received.append(where)
                acknowledged |= {number} if where == "added" else set()
            time.sleep(0.004 * kill)
            process.kill()
            acknowledged |= {number for where, number in everything(reports) if where == "added"}
            process.join()
            assert process.exitcode == -signal.SIGKILL
        left = {file.name for file in tmp_path.iterdir()}
        assert left <= {"bank.sqlite", "bank.sqlite-wal", "bank.sqlite-shm"}
        with Bank.open(path, FINGERPRINT) as bank:
            assert bank.verify() == []
            found = list(bank.documents())
            assert {document.memories for document in found} == {LONG}
            assert bank.count().memories == LONG * len(found)
            assert acknowledged <= {seed_of(document.id) for document in found}
            assert len(found) <= len(acknowledged) + kill + 1


def test_two_processes_read_while_one_writes(tmp_path):
    path = tmp_path / "bank.sqlite"
    with Bank.open(path, FINGERPRINT) as bank:
        bank.add([document("0-0", 0, 0), document("0-1", 0, 0)])
        with (
            started(search_until_done, path) as (one, reports_of_one),
            started(search_until_done, path) as (other, reports_of_other),
        ):
            for number in range(1, 21):
                bank.add([document(f"{number}-{n}", 0, number) for n in range(2)])
                bank.add([document(f"{number}-0", 1, number)])
                if number % 5 == 0:
                    bank.delete(f"{number}-1")
                    bank.add([document(f"{number}-1", 2, number)])
            for process, reports in ((one, reports_of_one), (other, reports_of_other)):
                (searches,) = everything(reports)
                process.join()
                assert (process.exitcode, searches >= 5) == (0, True)
        assert bank.verify() == []


def test_processes_that_create_and_fill_one_bank_together_lose_nothing(tmp_path):
    path = tmp_path / "bank.sqlite"
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(started(add_a_few, path)) for _ in range(3)]
        names = [name for _, reports in workers for name in everything(reports)]
        for process, _ in workers:
            process.join()
            assert process.exitcode == 0
    assert len(names) == 15
    with Bank.open(path, FINGERPRINT) as bank:
        assert {stored.id for stored in bank.documents()} == set(names)
        assert bank.verify() == []


def test_a_file_that_may_not_grow_loses_nothing(tmp_path):
    path = tmp_path / "bank.sqlite"
    with started(add_until_file_limit, path) as (_, reports):
        ((refusal, added),) = everything(reports)
    check_filled(path, refusal, added)


def test_a_long_document_that_finds_no_room_is_refused_as_a_whole(tmp_path):
    path = tmp_path / "bank.sqlite"
    with started(add_beyond_file_limit, path) as (_, reports):
        (refusal,) = everything(reports)
    assert "expected room in" in refusal
    assert "nothing of this change was written" in refusal
    with Bank.open(path, FINGERPRINT) as bank:
        assert [document.id for document in bank.documents()] == ["0-after"]
        assert bank.verify() == []


def test_a_full_disk_loses_nothing(tmp_path):
    """On a file system that really is full: one in memory, in a mount namespace of its own."""
    disk, saved = tmp_path / "disk", tmp_path / "saved"
    disk.mkdir()
    saved.mkdir()
    mount = f"mount -t tmpfs -o size=4m tmpfs {disk}"
    call = f"from {__name__} import *; add_until_disk_full(Path('{disk}/bank.sqlite'))"
    work = f'{mount} && {sys.executable} -c "{call}" && cp {disk}/bank.sqlite* {saved}'
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode != 0:
        pytest.skip("this user may not mount a file system")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", work],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    refusal, added = done.stdout.splitlines()
    assert "the disk is full" in refusal
    check_filled(saved / "bank.sqlite", refusal, int(added))


def test_a_flipped_byte_is_named_and_the_others_are_fine(tmp_path):
    path = tmp_path / "bank.sqlite"
    with Bank.open(path, FINGERPRINT) as bank:
        bank.add([document(f"{n}-0", 0, n) for n in range(5)])
    content = bytearray(path.read_bytes())
    raw = make_piece("", 3, shape=LARGE).memory.view(torch.uint8).numpy().tobytes()
    content[content.index(raw[20_000:20_100])] ^= 0x10
    path.write_bytes(content)
    with Bank.open(path, FINGERPRINT) as bank:
        ids = bank.key_changes(0).added_ids
        (hits,) = KeyIndex(bank).search(make_key(3)[None], 1)
        with pytest.raises(CorruptRecordError, match=f"document '3-0', memory {ids[3]}"):
            bank.memories([hits[0].memory_id])
        assert [(p.document_id, p.memory_id) for p in bank.verify()] == [("3-0", ids[3])]
        assert len(bank.memories([i for i in ids if i != ids[3]])) == 4
        bank.add([document("3-0", 1, 3)])  # another text in its place repairs the bank
        assert bank.verify() == []
