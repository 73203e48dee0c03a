"""The distributed backend: OpenRLHF's Ray actors, vLLM engines and DeepSpeed workers, driven step by step.

Importing this package prepares the process for OpenRLHF (see ``compat``), so every module in it may simply import it,
also in a Ray worker that unpickles one of our actors.
"""

from openrlhf_gagpo.backends.distributed import compat

compat.install()
