"""The distributed backend: OpenRLHF's Ray actors, vLLM engines and DeepSpeed workers, driven step by step.

Importing this package prepares the process for OpenRLHF (see ``compat``), so every module in it may simply import it,
also in a Ray worker that unpickles one of our actors.
"""

import os

from openrlhf_gagpo import machine
from openrlhf_gagpo.backends.distributed import compat

if not machine.has_cuda():
    # Said rather than guessed: DeepSpeed warns when it has to find out.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
compat.install()
