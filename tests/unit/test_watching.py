"""A folder followed: what comes, changes and goes, and what must not be forgotten."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from click.testing import CliRunner

from cmt import watching
from cmt.bank import Bank
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.errors import BankError, FingerprintMismatchError, InputError
from cmt.memory import Memory
from cmt.opening import fingerprint
from cmt.records import Failure
from cmt.watching import Watch, follow
from tests import small, tiny

LONG_AGO = 10**9


@pytest.fixture(scope="module")
def compressor():
    return small.compressor()


@pytest.fixture
def memory(tmp_path, compressor):
    with Memory(Bank.open(tmp_path / "m.sqlite", fingerprint(compressor)), compressor) as made:
        yield made


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "notes"
    made.mkdir()
    return made


@pytest.fixture
def write(folder):
    """Write a file, each time with a later time stamp, all long ago."""
    stamps = iter(range(LONG_AGO, LONG_AGO + 1000))

    def write_file(name: str, content: str) -> str:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        stamp = next(stamps)
        os.utime(path, (stamp, stamp))
        return str(path)

    return write_file


def texts(memory: Memory, **filters: object) -> list[str]:
    return sorted(document.text for document in memory.documents(**filters))


def test_a_line_stays_while_any_file_has_it(memory, folder, write):
    line = json.dumps({"text": "Ann is the mayor."})
    first = write("a.jsonl", line)
    write("b.jsonl", line + "\n" + json.dumps({"text": "Rivers carry sand."}))
    watch = Watch(memory, folder)
    watch.round()
    os.remove(first)
    watch.round()
    assert texts(memory) == ["Ann is the mayor.", "Rivers carry sand."]
    os.rename(folder / "b.jsonl", folder / "c.jsonl")
    watch.round()
    assert texts(memory) == ["Ann is the mayor.", "Rivers carry sand."]
    assert not watch.round()


def test_files_come_change_and_go(memory, folder, write):
    watch = Watch(memory, folder)
    assert not watch.round()
    ann, rivers = (
        write("ann.txt", "Ann is the mayor."),
        write("sub/rivers.md", "Rivers carry sand."),
    )
    assert watch.round().added == (ann, rivers)
    assert not watch.round()
    write("ann.txt", "Bob is the mayor.")
    assert watch.round().updated == (ann,)
    assert texts(memory) == ["Bob is the mayor.", "Rivers carry sand."]
    os.remove(ann)
    shutil.rmtree(folder / "sub")
    assert set(watch.round().forgotten) == {ann, rivers}
    assert texts(memory) == []


def test_only_changed_files_are_read_again(memory, folder, write, monkeypatch):
    write("a.txt", "sand")
    write("b.txt", "silt")
    watch = Watch(memory, folder)
    watch.round()
    read = []
    monkeypatch.setattr(watching, "read_path", lambda file: read.append(file) or iter(()))
    watch.round()
    changed = write("b.txt", "clay")
    watch.round()
    assert read == [changed]


def test_a_file_that_just_changed_is_looked_at_again(memory, folder):
    """A second change within one tick of the file system's clock must not be missed."""
    (folder / "a.txt").write_text("sand")
    watch = Watch(memory, folder)
    watch.round()
    stamp = (folder / "a.txt").stat().st_mtime_ns
    (folder / "a.txt").write_text("silt")
    os.utime(folder / "a.txt", ns=(stamp, stamp))
    assert len(watch.round().updated) == 1


def test_a_watch_started_again_goes_on(memory, folder, write):
    gone, changed = write("gone.txt", "sand"), write("changed.txt", "silt")
    write("same.txt", "clay")
    Watch(memory, folder).round()
    os.remove(gone)
    write("changed.txt", "mud")
    report = Watch(memory, folder).round()
    assert (report.added, report.updated, report.forgotten) == ((), (changed,), (gone,))


def test_lines_that_are_gone_from_a_file_are_forgotten(memory, folder, write):
    def lines(*documents: dict) -> None:
        write("all.jsonl", "\n".join(json.dumps(document) for document in documents))

    lines({"text": "sand", "id": "s"}, {"text": "silt"}, {"text": "far", "source": "elsewhere"})
    watch = Watch(memory, folder)
    watch.round()
    lines({"text": "sand, wet", "id": "s"}, {"text": "clay"})
    report = watch.round()
    assert (len(report.added), len(report.updated), len(report.forgotten)) == (1, 1, 1)
    assert texts(memory) == ["clay", "far", "sand, wet"]


def test_a_file_that_broke_keeps_what_was_learned_from_it(memory, folder, write):
    path = write("all.jsonl", '{"text": "sand"}\n{"text": "silt"}')
    watch = Watch(memory, folder)
    watch.round()
    write("all.jsonl", '{"text": "sand"}\n{"text": "si')
    report = watch.round()
    assert [failure.document for failure in report.failed] == [f"{path}:2"]
    assert texts(memory) == ["sand", "silt"]


@pytest.fixture
def unreadable(monkeypatch):
    """Paths whose reading fails, and all that were read."""
    failing, read = set(), []
    read_path = watching.read_path

    def sometimes(file):
        read.append(file)
        if file in failing:
            return iter([Failure(document=file, reason="Input/output error")])
        return read_path(file)

    monkeypatch.setattr(watching, "read_path", sometimes)
    return failing, read


def test_a_file_that_failed_for_a_passing_reason_is_tried_again(memory, folder, write, unreadable):
    failing, _ = unreadable
    path = write("a.txt", "sand")
    write("b.txt", "silt")
    failing.add(path)
    watch = Watch(memory, folder)
    assert [failure.document for failure in watch.round().failed] == [path]
    failing.clear()
    assert watch.round().added == (path,)
    assert texts(memory) == ["sand", "silt"]
    assert not watch.round()


def test_a_file_that_stays_bad_is_tried_ever_more_rarely(memory, folder, write, unreadable):
    failing, read = unreadable
    path = write("a.txt", "sand")
    failing.add(path)
    watch = Watch(memory, folder)
    told = [number for number in range(16) if watch.round().failed]
    assert told == [0, 1, 3, 7, 15]
    assert len(read) == len(told)
    write("a.txt", "sand and silt")  # changed: at once, and from the beginning
    told = [number for number in range(16, 24) if watch.round().failed]
    assert told == [16, 17, 19, 23]


def test_the_wait_has_an_end_and_a_file_that_went_is_not_waited_for(
    memory, folder, write, unreadable, monkeypatch
):
    failing, _ = unreadable
    monkeypatch.setattr(watching, "LONGEST_WAIT", 2)
    path = write("a.txt", "sand")
    failing.add(path)
    watch = Watch(memory, folder)
    assert [number for number in range(8) if watch.round().failed] == [0, 1, 3, 5, 7]
    os.remove(path)
    assert not any(watch.round() for _ in range(4))
    failing.clear()
    write("a.txt", "sand")
    assert watch.round().added == (path,)


def test_other_documents_are_left_alone(memory, folder, write):
    memory.add(["typed in", "another"])
    (folder.parent / "notes2").mkdir()
    (folder.parent / "notes2" / "x.txt").write_text("beside")
    Watch(memory, folder.parent / "notes2").round()
    shutil.rmtree(folder.parent / "notes2")
    write("a.txt", "sand")
    watch = Watch(memory, folder)
    watch.round()
    assert not watch.round().forgotten
    assert texts(memory) == ["another", "beside", "sand", "typed in"]


def test_what_cannot_be_listed_is_not_forgotten(memory, folder, write, monkeypatch):
    write("sub/a.txt", "sand")
    watch = Watch(memory, folder)
    watch.round()
    unlisted = Failure(document=str(folder / "sub"), reason="Permission denied")
    monkeypatch.setattr(watching, "list_files", lambda _: iter([unlisted]))
    report = watch.round()
    assert (report.forgotten, report.failed) == ((), (unlisted,))
    assert texts(memory) == ["sand"]


def test_a_folder_that_is_missing_for_a_while_is_waited_for(memory, folder, write, caplog):
    write("a.txt", "sand")
    seen = []
    watch = Watch(memory, folder)
    follow(watch, seconds=0, on_round=seen.append, rounds=1)
    folder.rename(folder.with_name("away"))
    follow(watch, seconds=0, on_round=seen.append, rounds=2)
    assert len(seen) == 1
    assert "is not there: nothing is changed" in caplog.text
    assert texts(memory) == ["sand"]


def test_a_bank_that_cant_be_written_for_a_while_is_waited_for(
    memory, folder, write, caplog, monkeypatch
):
    write("a.txt", "sand")
    errors = iter([BankError("the disk is full"), None])
    add = memory.add

    def sometimes(*arguments, **options):
        error = next(errors, None)
        if error is not None:
            raise error
        return add(*arguments, **options)

    monkeypatch.setattr(memory, "add", sometimes)
    seen = []
    follow(Watch(memory, folder), seconds=0, on_round=seen.append, rounds=2)
    assert "the next round tries again: the disk is full" in caplog.text
    assert [len(round_.added) for round_ in seen] == [1]
    assert texts(memory) == ["sand"]


@pytest.mark.parametrize(
    ("error", "rounds"), [(BankError("full"), 1), (FingerprintMismatchError("another"), 5)]
)
def test_what_waiting_does_not_mend_is_raised(memory, folder, write, monkeypatch, error, rounds):
    write("a.txt", "sand")

    def never(*arguments, **options):
        raise error

    monkeypatch.setattr(memory, "add", never)
    with pytest.raises(type(error)):
        follow(Watch(memory, folder), seconds=0, on_round=print, rounds=rounds)


def test_options_apply_and_files_may_be_kept(memory, folder, write):
    path = write("a.txt", "sand")
    watch = Watch(memory, folder, forget=False, namespace="n", tags=["t"], supersede=True)
    watch.round()
    write("a.txt", "silt")
    watch.round()
    os.remove(path)
    assert not watch.round()
    assert texts(memory, namespace="n", tags=["t"]) == ["silt"]
    assert len(memory.history(path, namespace="n")) == 2


def test_a_file_put_back_to_an_older_state_is_learned(memory, folder, write):
    path = write("a.txt", "sand")
    os.utime(path, (LONG_AGO, LONG_AGO))
    watch = Watch(memory, folder, supersede=True)
    watch.round()
    edited = 1_500_000_000
    write("a.txt", "silt")
    os.utime(path, (edited, edited))
    watch.round()
    write("a.txt", "sand")  # as cp -p, rsync -a and tar leave it, with the old time stamp
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert watch.round().updated == (path,)
    assert texts(memory) == ["sand"]
    assert texts(memory, as_of="2010") == ["sand"]
    assert texts(memory, as_of="2018") == ["silt"]
    os.utime(path, (edited, edited))
    assert not watch.round()  # a touched file brings nothing new
    assert not Watch(memory, folder, supersede=True).round()
    assert len(memory.history(path)) == 3


def test_a_folder_that_is_none_is_refused(memory, tmp_path):
    with pytest.raises(InputError, match="expected a folder to watch, got none at"):
        Watch(memory, tmp_path / "none")


def test_the_command_looks_once_or_until_it_is_ended(folder, write, tmp_path, monkeypatch):
    tiny.save(tmp_path / "base")
    save_pretrained(small.compressor(), tmp_path / "checkpoint")
    model = ["--model", str(tmp_path / "base"), "--checkpoint", str(tmp_path / "checkpoint")]
    bank = ["--bank", str(tmp_path / "w.sqlite")]

    def run(*arguments):
        return CliRunner().invoke(main, ["watch", str(folder), *bank, *model, *arguments])

    write("a.txt", "sand")
    write("b.jsonl", "broken")
    done = run("--once")
    assert done.stdout == "added 1, updated 0, forgot 0, failed 1\n"
    assert "b.jsonl:1: Expected a JSON object" in done.stderr
    write("a.txt", "silt")
    assert len(json.loads(run("--once", "--json").stdout)["updated"]) == 1
    slept = []

    def interrupt(seconds):
        slept.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupt)
    done = run("--interval", "3")
    assert (done.exit_code, slept) == (0, [3.0])
    assert "ended" in done.stderr
