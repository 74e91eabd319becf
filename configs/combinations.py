"""The demo's language model, with combinations of methods that no paper has.

`lanton_cosmos` and `lanton_root` lower COSMOS's and ROOT's rates where a layer's
gradients are noisy; `despiked_muon` and `despiked_cosmos` clip SPAM's spikes before
they orthogonalize; `adamw_two_rates` gives AdamW what the matrix methods have, a rate
for hidden matrices and one for all else. `python -m experiments.study lanton_over
despiked two_rates` compares them with what they are made of.
"""

from typing import Unpack

import optax

import optlab
from experiments import config as configs
from optlab.compose import matrix_optimizer, scale_by_adam
from optlab.options import MatrixOptions, takes


def _adaptive(method, learning_rate, alpha, exponent, options):
    def direction(*, mu_dtype=None, **spread):
        inner = method(mu_dtype=mu_dtype, **spread)
        return optlab.noise_adaptive(inner, alpha=alpha, exponent=exponent, **spread)

    return matrix_optimizer(direction, learning_rate, options)


@takes(MatrixOptions)
def lanton_cosmos(
    learning_rate,
    *,
    rank: int = 64,
    gamma: float = 0.2,
    alpha: float = 1.0,
    exponent: float = 0.5,
    **options: Unpack[MatrixOptions],
):
    """COSMOS with LANTON's rates.

    Args:
      learning_rate: of the hidden matrices.
      rank, gamma: see :func:`optlab.cosmos`.
      alpha, exponent: see :func:`optlab.noise_adaptive`.
      **options: see :mod:`optlab.options`.
    """

    def method(**spread):
        return optlab.scale_by_cosmos(rank=rank, gamma=gamma, **spread)

    return _adaptive(method, learning_rate, alpha, exponent, options)


@takes(MatrixOptions)
def lanton_root(
    learning_rate,
    *,
    quantile: float = 0.9,
    alpha: float = 1.0,
    exponent: float = 0.5,
    **options: Unpack[MatrixOptions],
):
    """ROOT with LANTON's rates.

    Args:
      learning_rate: of the hidden matrices.
      quantile: see :func:`optlab.root`.
      alpha, exponent: see :func:`optlab.noise_adaptive`.
      **options: see :mod:`optlab.options`.
    """

    def method(**spread):
        return optlab.scale_by_root(quantile=quantile, **spread)

    return _adaptive(method, learning_rate, alpha, exponent, options)


@takes(MatrixOptions)
def despiked_muon(
    learning_rate,
    *,
    spike_threshold: float = 50.0,
    **options: Unpack[MatrixOptions],
):
    """SPAM's clipping before Muon.

    Args:
      learning_rate: of the hidden matrices.
      spike_threshold: see :func:`optlab.clip_spikes`.
      **options: see :mod:`optlab.options`.
    """
    clip = optlab.clip_spikes(spike_threshold, reset_interval=0)
    return optax.chain(clip, optlab.muon(learning_rate, **options))


@takes(MatrixOptions)
def despiked_cosmos(
    learning_rate,
    *,
    rank: int = 64,
    spike_threshold: float = 50.0,
    **options: Unpack[MatrixOptions],
):
    """SPAM's clipping before COSMOS.

    Args:
      learning_rate: of the hidden matrices.
      rank: see :func:`optlab.cosmos`.
      spike_threshold: see :func:`optlab.clip_spikes`.
      **options: see :mod:`optlab.options`.
    """
    clip = optlab.clip_spikes(spike_threshold, reset_interval=0)
    return optax.chain(clip, optlab.cosmos(learning_rate, rank=rank, **options))


@takes(MatrixOptions)
def adamw_two_rates(
    learning_rate,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    **options: Unpack[MatrixOptions],
):
    """AdamW with another rate for embeddings, heads and vectors.

    Args:
      learning_rate: of the hidden matrices.
      b1, b2, eps: of the hidden matrices, see :func:`optax.adamw`.
      **options: see :mod:`optlab.options`.
    """

    def direction(*, mu_dtype=None, **_):
        return scale_by_adam(b1, b2, eps, mu_dtype)

    return matrix_optimizer(direction, learning_rate, options)


for _method in (
    lanton_cosmos,
    lanton_root,
    despiked_muon,
    despiked_cosmos,
    adamw_two_rates,
):
    optlab.register(_method.__name__, _method)


def get_config():
    config = configs.base()
    config.optimizer.learning_rate = 4e-3
    config.schedule.warmup_fraction = 0.05
    config.train.steps = 400
    config.train.eval_every = 20
    return config
