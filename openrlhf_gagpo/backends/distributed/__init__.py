"""The distributed backend: OpenRLHF's Ray actors, vLLM engines and DeepSpeed workers, driven step by step.

Importing this package prepares the process for OpenRLHF (see ``compat``), so its modules can simply import OpenRLHF,
also in a Ray worker that unpickles one of our actors.
"""

import os

from openrlhf_gagpo import hygiene, machine
from openrlhf_gagpo.backends.distributed import compat

hygiene.collect_rarely()
if not machine.has_cuda():
    # Set explicitly, because DeepSpeed warns when it has to detect it.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
compat.install()
