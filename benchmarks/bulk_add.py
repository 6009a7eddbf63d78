"""What `cmt add` of very many short documents costs in memory, and when it is run again.

Writes a JSON Lines file, learns it with a tiny random model through the command line's own path
(so that the figures are the software's, not a model's), kills the process in the middle with
SIGKILL, and runs it again to its end and once more. Prints JSON: seconds, documents and the
greatest resident memory of each run.

    python benchmarks/bulk_add.py --documents 100000
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from matching import machine

from cmt.bank import Bank
from cmt.errors import BankError

REPOSITORY = Path(__file__).parents[1]
MAKE_MODEL = """
import sys
from pathlib import Path
from cmt.checkpoint import save_pretrained
from tests import small, tiny
tiny.save(Path(sys.argv[1]) / "base")
save_pretrained(small.compressor(), Path(sys.argv[1]) / "checkpoint")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", MAKE_MODEL, name], cwd=REPOSITORY, check=True)
        with (folder / "documents.jsonl").open("w") as lines:
            for number in range(arguments.documents):
                lines.write(json.dumps({"text": f"Tower {number} is {number % 97} m high."}) + "\n")
        bank = folder / "bank.sqlite"
        runs = [
            run(folder, bank, stop_at=arguments.documents // 2),
            run(folder, bank),
            run(folder, bank),
        ]
        with Bank.open(bank, None, read_only=True) as opened:
            result = {
                "documents": arguments.documents,
                "runs": runs,
                "in_the_bank": opened.count().documents,
                "problems": len(opened.verify()),
                "file_bytes": opened.stats().file_bytes,
                "machine": machine(),
            }
    print(json.dumps(result, indent=1))


def run(folder: Path, bank: Path, stop_at: int | None = None) -> dict[str, object]:
    """One `cmt add`; killed once the bank holds so many documents."""
    command = [sys.executable, "-m", "cmt.cli", "add", str(folder / "documents.jsonl"), "--json"]
    command += ["--bank", str(bank), "--checkpoint", str(folder / "checkpoint")]
    command += ["--model", str(folder / "base")]
    began = time.perf_counter()
    with (folder / "report").open("w") as report:
        process = subprocess.Popen(command, stdout=report, cwd=REPOSITORY)
        largest = 0
        while process.poll() is None:
            largest = max(largest, resident_bytes(process.pid))
            if stop_at is not None and held(bank) >= stop_at:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.5)
    counts = {"exit_code": process.returncode, "held_after": held(bank)}
    if process.returncode == 0:
        done = json.loads((folder / "report").read_text())
        counts |= {name: len(done[name]) for name in ("added", "unchanged", "failed")}
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "largest_resident_bytes": largest,
        **counts,
    }


def held(bank: Path) -> int:
    if not bank.exists() or bank.stat().st_size == 0:
        return 0
    try:
        with Bank.open(bank, None, read_only=True) as opened:
            return opened.count().documents
    except BankError:  # it is being made
        return 0


def resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # ended meanwhile
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
