"""NorMuon: Muon whose neurons step by the same length.

For a matrix `W` of shape `(d_in, d_out)` with gradient `G`::

    M = mu M + (1-mu) G ;  X = (1-mu) G + mu M           Nesterov; X = M without
    O = NS_5(X / (|X| + 1e-7))
    v = b2 v + (1-b2) mean over d_in of O^2              one number an output
    H = O / (sqrt(v) + eps) ;  D = H |O|_F / (|H|_F + eps)
    direction = sqrt(max(1, d_out / d_in)) D

It is `optlab.normalize_neurons` behind `optlab.scale_by_muon`.

Held against the authors' code, zichongli5/NorMuon at commit d45c9a4. Deviations:

* convolutions are matrices first; in the authors' code a kernel's rows are neurons.
* `eps` is compared with `O` after its scale by the shape, not before.
* `axis="longer"` is modded-nanogpt's: a number for each place along the longer side.

References:
  Li et al., `NorMuon: Making Muon more efficient and scalable
  <https://arxiv.org/abs/2510.05491>`_, 2025.
"""

from functools import partial
from typing import Literal, Unpack

import optax

from optlab.compose import matrix_optimizer
from optlab.optimizers.muon import scale_by_muon
from optlab.options import (
    MuonOptions,
    NewtonSchulzOptions,
    Number,
    OrthogonalOptions,
    Rate,
    pick,
    takes,
)
from optlab.wrappers.neurons import normalize_neurons

_NS_EPS = 1e-7


@takes(OrthogonalOptions)
def scale_by_normuon(
    momentum: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-10,
    *,
    axis: Literal["output", "longer"] = "output",
    consistent_rms: float | None = None,
    **options: Unpack[OrthogonalOptions],
) -> optax.GradientTransformationExtraArgs:
    """The direction of NorMuon, for trees of hidden matrices only.

    See :func:`optlab.normuon` for the arguments.

    Raises:
      ValueError: an argument is out of range, or a leaf is no matrix.
    """
    muon = scale_by_muon(
        momentum,
        eps=_NS_EPS,
        consistent_rms=consistent_rms,
        average="plain",
        **options,
    )
    roles = options.get("roles")
    return optax.chain(muon, normalize_neurons(b2, eps=eps, axis=axis, roles=roles))


@takes(MuonOptions, adam_eps=1e-10)
def normuon(
    learning_rate: Rate,
    *,
    momentum: Number = 0.95,
    b2: Number = 0.95,
    eps: Number = 1e-10,
    axis: Literal["output", "longer"] = "output",
    consistent_rms: float | None = None,
    **options: Unpack[MuonOptions],
) -> optax.GradientTransformationExtraArgs:
    """NorMuon on the hidden matrices, AdamW on embeddings, heads and vectors.

    The authors' rates are 0.02 for the matrices and 3e-4 for Adam's leaves. The
    equations and the deviations from their code stand in
    :mod:`optlab.optimizers.normuon`.

    Example:
      >>> import jax.numpy as jnp, optax, optlab
      >>> params = {"w": jnp.ones((4, 6)), "bias": jnp.zeros(6)}
      >>> tx = optlab.normuon(2e-2, adam_learning_rate=3e-4, weight_decay=0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    Args:
      learning_rate: of the hidden matrices, a number or a schedule.
      momentum: decay of the momentum, in [0, 1).
      b2: decay of the neurons' second moment, in [0, 1).
      eps: added to its root.
      axis: what a neuron is, "output" or "longer", see
        :func:`optlab.normalize_neurons`.
      consistent_rms: RMS of an update at rate one, whatever the shape. None: the scale
        is `sqrt(max(1, d_out / d_in))`.
      **options: see :mod:`optlab.options`.

    Returns:
      The optimizer; its state is Muon's and one number a neuron.

    Raises:
      ValueError: an argument is out of range.
    """
    direction = partial(
        scale_by_normuon,
        *(momentum, b2, eps),
        axis=axis,
        consistent_rms=consistent_rms,
        **pick(NewtonSchulzOptions, options),
    )
    return matrix_optimizer(direction, learning_rate, options)
