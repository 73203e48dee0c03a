"""Model folders: the options that policies with one share, their tokenizer, and a fingerprint for the record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.options import declare
from openrlhf_gagpo.policies.registry import PolicyOptions, PolicySetting, PolicySource

__all__ = ["MODEL_HELP", "FolderOptions", "FolderPolicy", "fingerprint", "load_tokenizer"]

MODEL_HELP = "model: a folder or a name on the hub, or the name under which an endpoint serves it"
_PIECE = 2**20


@dataclass(frozen=True)
class FolderOptions(PolicyOptions):
    """Options of a policy whose weights are here."""

    model: str | None = declare(None, MODEL_HELP)
    dtype: str = declare("fp32", "number format of the weights", choices=("fp32", "bf16", "fp16"))

    @property
    def path(self) -> str:
        """The model. Raises ``ConfigError`` without one."""
        if not self.model:
            raise ConfigError("no model is given; set --policy.model to a folder, or --config to a run")
        return self.model


class FolderPolicy(PolicySource):
    """Base of policies whose weights are here: their tokenizer, name and fingerprint."""

    def __init__(self, options: FolderOptions, setting: PolicySetting) -> None:
        super().__init__(options, setting)
        self.tokenizer = load_tokenizer(options.path, "policy.model")

    @property
    def label(self) -> str:
        return self.options.path

    def facts(self) -> dict[str, object]:
        return {"weights": fingerprint(Path(self.options.path))}


def load_tokenizer(path: str, flag: str) -> Any:
    """Load a tokenizer that can pad. Raises ``ConfigError``, which names ``flag``, if there is none."""
    if Path(path).is_dir():
        # Set before anything imports the hub's client, which reads it once.
        hygiene.stay_offline()
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--{flag} needs the package {error.name}, which is not installed; install openrlhf-gagpo[local]"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"no tokenizer can be loaded from {path!r}: {cause}; check --{flag}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def fingerprint(folder: Path) -> str:
    """Return 16 hex digits over names, sizes and the first and last MiB of a folder's weights and ``config.json``.

    Two models with different weights differ in them in practice, and a large model is not read as a whole. It is ""
    for a model that is not a folder.
    """
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        if file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_PIECE))
                stream.seek(max(0, size - _PIECE))
                digest.update(stream.read())
    return digest.hexdigest()[:16]
