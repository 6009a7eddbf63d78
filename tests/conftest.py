"""One thread a process: tiny models gain nothing from more, and lose much on a busy machine.

Triton's kernels run interpreted where there is no GPU. Setuptools, which compiled code imports, is
imported before they bring Python 3.11's own distutils, which it would not replace any more.
"""

import contextlib
import os
import shutil

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
