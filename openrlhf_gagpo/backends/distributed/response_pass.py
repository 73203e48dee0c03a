"""The passes of policy and reference workers: OpenRLHF's actor, with logits at response tokens alone.

Shapes: S sequences of T tokens; position t of an output refers to token t + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from openrlhf.models import Actor
from torch import Tensor

from openrlhf_gagpo.training.token_scores import Reading, fill, score_positions

if TYPE_CHECKING:
    from openrlhf_gagpo.backends.distributed.strategy import StepStrategy

__all__ = ["response_pass"]


def response_pass(
    actor: Actor,
    sequences: Tensor,
    attention_mask: Tensor,
    action_mask: Tensor,
    strategy: StepStrategy,
    *,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities and entropies, each (S, T-1), where ``action_mask`` is 1, and zero elsewhere.

    Args:
        sequences, attention_mask: (S, T) int64, in the machine's memory, where positions are counted without waiting
            for the GPU.
        action_mask: (S, T-1) int64, 1 where token t + 1 is in a response.
        entropy: whether it is wanted; otherwise it is None.
    """
    device = torch.device(torch.cuda.current_device())
    if strategy.ring_attn_group is not None:
        sequences, attention_mask, action_mask = (part.to(device) for part in (sequences, attention_mask, action_mask))
        return _over_ring(actor, sequences, attention_mask, action_mask, strategy.ring_attn_group, entropy)
    chosen = action_mask.bool()
    row, column = chosen.nonzero(as_tuple=True)
    positions = row * sequences.shape[1] + column
    if actor.packing_samples:
        # The actor reads the tokens without their padding, as one sequence.
        positions = (attention_mask.flatten().cumsum(0) - 1)[positions]
    chunk = strategy.args.train.logit_chunk
    scores = score_positions(
        lambda: actor(sequences.to(device), attention_mask=attention_mask.to(device), return_output=True),
        actor.model.get_output_embeddings(),
        positions.to(device),
        sequences[:, 1:][chosen].to(device),
        Reading(actor.temperature, entropy, chunk),
        divided_by=actor.temperature,
    )
    chosen = chosen.to(device)
    return fill(scores.log_probs, chosen), None if scores.entropy is None else fill(scores.entropy, chosen)


def _over_ring(
    actor: Actor, sequences: Tensor, attention_mask: Tensor, action_mask: Tensor, group: Any, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Let OpenRLHF make the logits of every position, because the ranks of a ring share each sequence."""
    log_probs, output = actor(
        sequences,
        action_mask,
        attention_mask=attention_mask,
        return_output=True,
        ring_attn_group=group,
        return_entropy=entropy,
    )
    return log_probs, output.entropy if entropy else None
