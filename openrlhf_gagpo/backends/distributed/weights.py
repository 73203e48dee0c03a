"""Weight sync from the policy to a vLLM engine on the same machine, without CUDA.

The policy writes its parameters (safetensors) to an anonymous in-memory file and passes the engine its ``/proc`` path.
The kernel frees such a file when its last user closes it, so nothing is left when a process is killed at any time.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import torch

__all__ = ["WeightFileWorker", "weight_file"]

# vLLM imports this module in its engine process before it loads a model. That process is spawned, and there tqdm's own
# lock would be a named semaphore, which remains in /dev/shm when the process is killed.
tqdm.set_lock(threading.RLock())


def _end_with_parent() -> None:
    """End vLLM's engine process when the actor that started it dies, which neither vLLM nor always Ray does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with the actor", daemon=True).start()


_end_with_parent()


@contextmanager
def weight_file(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> Iterator[str]:
    """Yield the path of an in-memory safetensors file that exists while the context is open."""
    from safetensors.torch import save

    payload = save({name: parameter.detach().contiguous() for name, parameter in named_parameters})
    descriptor = os.memfd_create("gagpo-weights")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(payload)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


class WeightFileWorker:
    """vLLM worker extension (mixed into vLLM's worker) that loads the policy's parameters from such a file."""

    if TYPE_CHECKING:
        # vLLM's worker has these.
        def reload_weights(self, *, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None: ...

        def get_model(self) -> Any: ...

    def load_weight_file(self, path: str) -> int:
        """Replace all weights and return the number of loaded tensors."""
        from safetensors.torch import load

        tensors = load(Path(path).read_bytes())
        self.reload_weights(weights_iterator=iter(tensors.items()))
        self._repack_tied_heads()
        return len(tensors)

    def _repack_tied_heads(self) -> None:
        """Renew the packed copies that vLLM's CPU kernels keep of weights that the checkpoint does not name.

        A tied ``lm_head`` is such a weight: after a reload the embedding is new, but the head's packed copy is the old
        one. Layers that were reloaded by name have an empty ``weight`` (vLLM keeps only the packed copy of those).
        """
        for module in self.get_model().modules():
            weight = getattr(module, "weight", None)
            if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
                module.quant_method.process_weights_after_loading(module)
