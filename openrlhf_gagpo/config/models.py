"""Checks of whether a model can be loaded, without importing torch; each problem is one sentence."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cache_folder", "cached", "check_hub_model", "check_model_folder", "offline"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_HUB_TIMEOUT_S = 10.0


def check_model_folder(folder: Path, flag: str, *, tokenizer: bool = True) -> Iterator[str]:
    """Yield what is missing or damaged in a Hugging Face model folder.

    Args:
        flag: where the folder was given, for the message.
        tokenizer: whether the model needs one of its own.
    """
    if not (folder / "config.json").is_file():
        yield f"{folder} has no config.json, so it is not a model folder; check --{flag}"
    for name in _JSON_FILES:
        yield from _check_json(folder / name)
    if tokenizer and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        yield f"{folder} has no tokenizer (tokenizer.json or another tokenizer file); save one next to the model"
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not weights:
        yield f"{folder} has no weights (*.safetensors or *.bin); save the model there first"
    for file in weights:
        if not _is_whole(file):
            yield f"{file} is cut short or damaged; copy or save the model again"
    for index in folder.glob("*.index.json"):
        yield from _check_shards(index)


def check_hub_model(name: str) -> Iterator[str]:
    """Yield why a model cannot be fetched from the hub, without waiting for its client's many retries."""
    # Imported here, because only a name that is not a folder needs the hub's client.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except HfHubHTTPError:
        yield f"there is no model folder {name}, and the hub has no such model for you; check the name or your token"
    except Exception as error:  # the client's transport may raise anything
        yield (
            f"there is no model folder {name}, and the hub cannot be reached ({type(error).__name__}); give a local "
            "folder, or fetch the model on a machine with a network"
        )


def offline() -> bool:
    """Return whether environment variables switch off the hub."""
    return any(
        os.environ.get(name, "0").lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def cached(name: str) -> bool:
    """Return whether a hub model was fetched before."""
    return os.path.isdir(cache_folder(name))


def cache_folder(name: str) -> Path:
    """Return where the hub's client keeps a model."""
    variables = os.environ
    user_cache = variables.get("XDG_CACHE_HOME") or "~/.cache"
    home = variables.get("HF_HOME") or f"{user_cache}/huggingface"
    cache = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(cache).expanduser() / f"models--{name.replace('/', '--')}"


def _check_json(file: Path) -> Iterator[str]:
    if not file.is_file():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{file} cannot be read ({error}); copy or save the model again"
        return
    if not isinstance(content, dict):
        yield f"{file} does not hold a JSON object; copy or save the model again"


def _is_whole(file: Path) -> bool:
    """Return whether a weights file is as long as its own table of contents says."""
    if file.suffix == ".bin":
        # Before PyTorch 1.6 such files were plain pickles, which can only be checked by loading them.
        with file.open("rb") as stream:
            start = stream.read(2)
        return bool(start) and (start != b"PK" or zipfile.is_zipfile(file))
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size - 8:
                return False
            tensors = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False
    return file.stat().st_size == 8 + length + max(ends, default=0)


def _check_shards(index: Path) -> Iterator[str]:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        yield f"{index} is not an index of model shards; copy or save the model again"
        return
    for shard in sorted(shards):
        if not (index.parent / shard).is_file():
            yield f"{index.parent} lacks {shard}, which {index.name} lists; copy or save the model again"
