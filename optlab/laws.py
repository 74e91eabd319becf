"""Laws that say a rate before anything is trained."""

import math
from typing import NamedTuple

from optlab import checks

# Models that the law was fitted on (from memory of the paper's tables).
_LEAST, _MOST = 6e7, 1e9


class StepLaw(NamedTuple):
    """What the law says.

    Attributes:
      learning_rate: the peak rate of AdamW.
      batch_tokens: tokens in a batch.
    """

    learning_rate: float
    batch_tokens: float


def step_law(parameters: float, tokens: float) -> StepLaw:
    """Rate and batch for AdamW on a language model, by the Step Law.

    `lr = 1.79 N^-0.713 D^0.307` and `0.58 D^0.571` tokens in a batch, for `N`
    parameters and `D` tokens. Fitted with a schedule that ends at a rate of 1e-5.

    Args:
      parameters: N, without the embeddings, from 6e7 to 1e9.
      tokens: D, to be trained on; above 0.

    Returns:
      The peak rate and the tokens of a batch.

    Raises:
      ValueError: outside of what the law was fitted on.

    References:
      Li et al., `Predictable Scale: Part I, Step Law
      <https://arxiv.org/abs/2503.04715>`_; step-law/steplaw at commit 32a8f4c.
    """
    checks.positive(parameters=parameters, tokens=tokens)
    if not _LEAST <= parameters <= _MOST:
        raise ValueError(
            f"parameters must be from {_LEAST:.0e} to {_MOST:.0e}, for which the law "
            f"was fitted, got {parameters:.3g}"
        )
    rate = 1.79 * math.pow(parameters, -0.713) * math.pow(tokens, 0.307)
    return StepLaw(rate, 0.58 * math.pow(tokens, 0.571))
