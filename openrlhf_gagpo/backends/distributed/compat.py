"""Changes that let the unmodified OpenRLHF package run in this process, also on a machine without a GPU.

Two kinds: stand-ins for what a machine without a GPU lacks, and imports that wait until what they bring is used.

``install()`` is cheap and imports nothing; it must run before ``openrlhf`` is first imported. This module's package
calls it, so a Ray worker that unpickles one of our actors is prepared too. Each change takes effect when the module
that it concerns is imported:

=====================================  ============================================================================
module                                 change
=====================================  ============================================================================
``openrlhf``                           without CUDA: stand-ins for the three CUDA calls OpenRLHF makes everywhere
``openrlhf.models.ring_attn_utils``    without flash-attn: the five names it imports, visible only while it executes
                                       (otherwise transformers and vLLM would assume that flash-attn is installed)
``openrlhf.utils.utils``               ``fp32`` as a parameter dtype (the right one for tiny models)
``openrlhf.trainer.ray.vllm_engine``   vLLM is imported when an engine is made; OpenRLHF imports this module, and with
                                       it vLLM, in every process, also in those that never generate
``deepspeed.comm.torch``               without CUDA: no C++ compilation of a shared-memory op (35 s)
=====================================  ============================================================================
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

__all__ = ["cuda_available", "install", "plain_class"]


def cuda_available() -> bool:
    """Return whether this process sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def plain_class(actor_class: Any) -> Any:
    """Return the class behind a ``@ray.remote`` class; OpenRLHF decorates its own where they are defined."""
    return actor_class.__ray_metadata__.modified_class.__ray_actor_class__


class CpuDevice(str):
    """The return value of ``torch.cuda.current_device`` without CUDA.

    OpenRLHF uses the value both as a device (``tensor.to(value)``, here ``"cpu"``) and inside ``f"cuda:{value}"``
    (only to build a ``torch.device`` object that is never used on this path).
    """

    def __format__(self, spec: str) -> str:
        return "0"


def _cuda_stand_ins(_: types.ModuleType) -> None:
    if cuda_available():
        return
    import torch

    cuda: Any = torch.cuda
    cuda.current_device = lambda: CpuDevice("cpu")
    cuda.set_device = lambda device: None
    cuda.synchronize = lambda device=None: None


def _fp32_dtype(module: Any) -> None:
    import torch

    original = module.convert_to_torch_dtype
    module.convert_to_torch_dtype = lambda name: torch.float32 if name == "fp32" else original(name)


def _no_shm_op(module: Any) -> None:
    if not cuda_available():
        module.build_shm_op = lambda: None


def _flash_attention_modules() -> dict[str, types.ModuleType]:
    """Return stand-ins for the names that ``ring_attn_utils`` imports; padding works, ring attention does not."""
    import torch
    import torch.nn.functional as F
    from einops import rearrange

    def index_first_axis(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return tensor[indices]

    def pad_input(hidden: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
        out = hidden.new_zeros((batch * seqlen, *hidden.shape[1:]))
        return out.index_copy(0, indices, hidden).view(batch, seqlen, *hidden.shape[1:])

    def unpad_input(hidden: torch.Tensor, attention_mask: torch.Tensor) -> tuple[Any, ...]:
        lengths = attention_mask.sum(-1, dtype=torch.int32)
        indices = attention_mask.flatten().nonzero().flatten()
        flat = hidden.reshape(-1, *hidden.shape[2:])[indices]
        cumulative = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return flat, indices, cumulative, int(lengths.max()), lengths

    def all_gather(*_: Any, **__: Any) -> None:
        raise RuntimeError("ring attention needs flash-attn, which is not installed; set --ds.ring_attn_size 1")

    padding: Any = types.ModuleType("flash_attn.bert_padding")
    padding.index_first_axis, padding.pad_input = index_first_axis, pad_input
    padding.unpad_input, padding.rearrange = unpad_input, rearrange
    distributed: Any = types.ModuleType("flash_attn.utils.distributed")
    distributed.all_gather = all_gather
    names = ("flash_attn", "flash_attn.utils")
    return {name: types.ModuleType(name) for name in names} | {m.__name__: m for m in (padding, distributed)}


@contextmanager
def _flash_attention_visible() -> Iterator[None]:
    if importlib.util.find_spec("flash_attn") is not None:
        yield
        return
    stand_ins = _flash_attention_modules()
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


class _LaterModule(types.ModuleType):
    """Stands for a module that is imported when one of its names is read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            # What looks through all modules of a process, as ``inspect`` does, is not to import this one.
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)

    def __reduce__(self) -> tuple[Callable[[str], types.ModuleType], tuple[str]]:
        # Ray sends classes with the names that their methods use; the process that gets them uses them.
        return importlib.import_module, (self.__name__,)


def _call_later(module: str, name: str, *args: Any, **named: Any) -> Any:
    """Import ``module`` and call its function of that name."""
    return getattr(importlib.import_module(module), name)(*args, **named)


_VLLM_FUNCTIONS = {"vllm.inputs": "TokensPrompt", "vllm.utils": "random_uuid"}
"""What ``vllm_engine`` imports by name."""


@contextmanager
def _vllm_later() -> Iterator[None]:
    if "vllm" in sys.modules:
        yield
        return
    # The other module that ``vllm_engine`` imports, and with it transformers and torch, which are to see no stand-in.
    importlib.import_module("openrlhf.utils.agent")
    stand_ins: dict[str, types.ModuleType] = {"vllm": _LaterModule("vllm")}
    for module, name in _VLLM_FUNCTIONS.items():
        stand_ins[module] = types.ModuleType(module)
        setattr(stand_ins[module], name, partial(_call_later, module, name))
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


_AFTER: dict[str, Callable[[types.ModuleType], None]] = {
    "openrlhf": _cuda_stand_ins,
    "openrlhf.utils.utils": _fp32_dtype,
    "deepspeed.comm.torch": _no_shm_op,
}
_DURING: dict[str, Callable[[], Any]] = {
    "openrlhf.models.ring_attn_utils": _flash_attention_visible,
    "openrlhf.trainer.ray.vllm_engine": _vllm_later,
}


class _Loader(importlib.abc.Loader):
    """Executes a module with its change applied."""

    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__
        if name in _DURING:
            with _DURING[name]():
                self.inner.exec_module(module)
        else:
            self.inner.exec_module(module)
        if name in _AFTER:
            _AFTER[name](module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to change as Python would, and wraps their loader."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _AFTER and fullname not in _DURING:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Prepare this process for OpenRLHF. Idempotent.

    Raises:
        RuntimeError: OpenRLHF was imported before, so the changes cannot take effect.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if "openrlhf" in sys.modules:
        raise RuntimeError("openrlhf was imported before openrlhf_gagpo's compat.install(); import it afterwards")
    sys.meta_path.insert(0, _Finder())
