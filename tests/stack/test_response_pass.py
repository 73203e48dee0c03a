"""The passes of the distributed workers against OpenRLHF's own over all positions, without processes around them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openrlhf_gagpo.training.collate import collate
from openrlhf_gagpo.training.rows import TokenRow
from support.models import make_model

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("response_pass") / "model", tied=True)


def rows() -> list[TokenRow]:
    rng = np.random.default_rng(2)
    sizes = ((5, 3), (9, 1), (3, 6), (7, 2))
    return [TokenRow(rng.integers(3, 20, p).tolist(), rng.integers(3, 20, r).tolist(), []) for p, r in sizes]


def numbers(actor: Any, log_probs: Tensor, entropy: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Both at the response tokens, and the gradient of a weighted sum of them."""
    values = torch.stack([log_probs, entropy])[:, mask.bool()]
    actor.zero_grad()
    (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
    return values.detach(), {name: p.grad.clone() for name, p in actor.named_parameters()}


@pytest.mark.parametrize("packing", [False, True])
def test_response_positions_give_what_all_positions_give(folder: Path, packing: bool) -> None:
    from openrlhf_gagpo.backends.distributed import compat

    compat.install()
    from openrlhf.models import Actor

    from openrlhf_gagpo.backends.distributed.response_pass import response_pass

    actor = Actor(
        str(folder), attn_implementation="sdpa", param_dtype="fp32", packing_samples=packing, temperature=TEMPERATURE
    ).train()
    # A rank without rows left passes padding alone.
    for tokens in (collate(rows(), pad_id=0, padding=1), collate([], pad_id=0, padding=1)):
        sequences, attention, mask = tokens.sequences, tokens.attention_mask, tokens.action_mask
        log_probs, output = actor(sequences, mask, attention_mask=attention, return_output=True)
        # The actor has divided the logits by the temperature, and packed ones have no padding.
        every = torch.log_softmax(output["logits"].flatten(0, 1), -1)
        entropy = torch.zeros(attention.numel())
        places = attention.flatten().nonzero()[:, 0] if packing else torch.arange(attention.numel())
        entropy = entropy.index_copy(0, places, -(every.exp() * every).sum(-1)).view(attention.shape)[:, :-1]
        expected, gradients = numbers(actor, log_probs, entropy, mask)
        for chunk in (0, 5):
            strategy: Any = SimpleNamespace(
                ring_attn_group=None, args=SimpleNamespace(train=SimpleNamespace(logit_chunk=chunk))
            )
            alone, none = response_pass(actor, sequences, attention, mask, strategy)
            assert none is None
            again, measured = response_pass(actor, sequences, attention, mask, strategy, entropy=True)
            assert measured is not None
            assert alone.shape == measured.shape == mask.shape
            assert torch.equal(alone, again)
            found, slopes = numbers(actor, again, measured, mask)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
            assert slopes.keys() == gradients.keys()
            for name, value in gradients.items():
                torch.testing.assert_close(slopes[name], value, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("chunk", [0, 5])
def test_the_output_layer_sees_the_response_positions_alone(folder: Path, packing: bool, chunk: int) -> None:
    from openrlhf_gagpo.backends.distributed import compat

    compat.install()
    from openrlhf.models import Actor

    from openrlhf_gagpo.backends.distributed.response_pass import response_pass

    actor = Actor(str(folder), attn_implementation="sdpa", param_dtype="fp32", packing_samples=packing)
    head, read = actor.model.get_output_embeddings(), []
    head.register_forward_hook(lambda layer, given, _: read.append(given[0].numel() // layer.in_features))
    tokens = collate(rows(), pad_id=0, padding=1)
    args = SimpleNamespace(train=SimpleNamespace(logit_chunk=chunk))
    strategy: Any = SimpleNamespace(ring_attn_group=None, args=args)
    with torch.no_grad():
        response_pass(actor, tokens.sequences, tokens.attention_mask, tokens.action_mask, strategy)
    # Twelve tokens in 32 positions; with chunks a probe comes first.
    assert read == ([1, 5, 5, 2] if chunk else [12])


def test_positions_shared_by_a_ring_stay_with_openrlhf(folder: Path) -> None:
    from openrlhf_gagpo.backends.distributed import compat

    compat.install()
    from openrlhf_gagpo.backends.distributed.response_pass import response_pass

    given: dict[str, Any] = {}

    def actor(sequences: Tensor, action_mask: Tensor, **named: Any) -> tuple[Tensor, SimpleNamespace]:
        given.update(named)
        return action_mask * -1.0, SimpleNamespace(entropy=action_mask * 2.0)

    mask = torch.ones(1, 3)
    strategy: Any = SimpleNamespace(ring_attn_group="ring")
    log_probs, entropy = response_pass(actor, torch.ones(1, 4), torch.ones(1, 4), mask, strategy, entropy=True)  # type: ignore[arg-type]
    assert entropy is not None
    assert (log_probs.tolist(), entropy.tolist()) == ([[-1.0] * 3], [[2.0] * 3])
    assert (given["ring_attn_group"], given["return_entropy"]) == ("ring", True)
