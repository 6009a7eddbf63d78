"""One thread a process: tiny models gain nothing from more, and lose much on a busy machine.

Triton's kernels run interpreted where there is no GPU.
"""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
