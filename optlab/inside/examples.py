"""Gradients of single examples: coherence, noise, and examples that pull apart.

`loss_fn(params, example)` is the loss of one example, a tree of arrays without the
leading axis of a batch. Examples are worked through in chunks, by `vmap` inside a
`scan`, so that memory is that of a chunk's gradients; under `jit` the rows may be cut
over a mesh.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import checks
from optlab.dtypes import at_least_float32
from optlab.inside.spectrum import dot
from optlab.matrices.norms import tree_layers
from optlab.roles import as_rule, leaf_name

PyTree = Any
Loss = Callable[[PyTree, PyTree], jax.Array]
Values = dict[str, jax.Array]


class GradientSums(NamedTuple):
    """Sums over the gradients `g_i` of examples, one number a layer.

    A layer of a stacked leaf is a slice of it: its numbers have the stack's shape.

    Attributes:
      count: m, how many examples there are.
      of_mean: `|mean_i g_i|^2` by the path of the parameter.
      mean_of: `mean_i |g_i|^2`, likewise.
    """

    count: int
    of_mean: Values
    mean_of: Values

    def whole(self) -> "GradientSums":
        """The same of all parameters together, under the path ""."""
        total = (sum(map(jnp.sum, x.values())) for x in (self.of_mean, self.mean_of))
        return GradientSums(self.count, *({"": jnp.asarray(x)} for x in total))


def gradient_sums(
    loss_fn: Loss, params: PyTree, batch: PyTree, *, chunk: int = 16, roles: Any = None
) -> GradientSums:
    """What coherence and noise scale are made of, from the gradient of every example.

    It costs the gradient of the batch, with less reuse of the weights, and `chunk`
    gradients of memory.

    Args:
      loss_fn: `loss_fn(params, example)` -> scalar.
      params: the point.
      batch: examples along the leading axis of every leaf.
      chunk: gradients to hold at once; it need not divide the batch.
      roles: which leaves are stacked, as the optimizer's.

    Raises:
      ValueError: `chunk` is no integer of at least 1, or the batch is no batch.
    """
    count = _rows(batch)
    layers = tree_layers(params, as_rule(roles), 1.0)
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]

    def squares(tree):
        return [
            jnp.sum(jnp.square(x), layer.axes)
            for x, layer in zip(jax.tree.leaves(tree), layers, strict=True)
        ]

    def add(total, part):
        rows, real = part
        gradients = jax.vmap(jax.grad(loss_fn), (None, 0))(params, rows)
        gradients = jax.tree.map(lambda g: _kept(g, real), gradients)
        summed = jax.tree.map(lambda g: jnp.sum(g, 0), gradients)
        own = [jnp.sum(x, 0) for x in jax.vmap(squares)(gradients)]
        return jax.tree.map(jnp.add, total, (summed, own)), None

    zeros = jax.tree.map(
        lambda p: jnp.zeros(p.shape, at_least_float32(p.dtype)), params
    )
    total, _ = jax.lax.scan(add, (zeros, squares(zeros)), _chunks(batch, chunk))
    mean = jax.tree.map(lambda x: x / count, total[0])
    own = [x / count for x in total[1]]
    return GradientSums(
        count,
        dict(zip(names, squares(mean), strict=True)),
        dict(zip(names, own, strict=True)),
    )


def coherence(sums: GradientSums) -> Values:
    """`m alpha` of every layer: how many examples one example's gradient helps.

    `alpha = |mean g|^2 / mean |g|^2`, so `m alpha` is 1 for gradients that are
    orthogonal to each other, m where all are the same, and below 1 where they cancel;
    0 where there is no gradient.

    Args:
      sums: from `gradient_sums`.

    Returns:
      By the path of the parameter; divide by `sums.count` for alpha.

    References:
      Chatterjee and Zielinski, `On the Generalization Mystery in Deep Learning
      <https://arxiv.org/abs/2203.10036>`_.
    """
    return {
        name: jnp.where(own > 0, sums.count * sums.of_mean[name] / _above(own), 0.0)
        for name, own in sums.mean_of.items()
    }


def noise_scale(sums: GradientSums) -> Values:
    """The simple noise scale `tr Sigma / |G|^2`, in examples.

    A batch far below it has a gradient that is noise for the most part; one far above
    it gains little. Without bias both: `tr Sigma = m/(m-1) (mean |g|^2 - |mean g|^2)`
    and `|G|^2 = |mean g|^2 - tr Sigma / m`. Infinite where noise hides the gradient.

    Args:
      sums: from `gradient_sums`, of two examples at least.

    Raises:
      ValueError: there is only one example.

    References:
      McCandlish et al., `An Empirical Model of Large-Batch Training
      <https://arxiv.org/abs/1812.06162>`_, appendix A.
    """
    m = sums.count
    if m < 2:
        raise ValueError(f"sums must be of at least 2 examples, got {m}")
    found = {}
    for name, own in sums.mean_of.items():
        noise = m / (m - 1) * (own - sums.of_mean[name])
        signal = sums.of_mean[name] - noise / m
        found[name] = jnp.where(signal > 0, noise / _above(signal), jnp.inf)
    return found


def example_losses(
    loss_fn: Loss, params: PyTree, batch: PyTree, *, chunk: int = 64
) -> jax.Array:
    """The loss of every example, `(rows,)`.

    Args:
      loss_fn: `loss_fn(params, example)` -> scalar.
      params: the point.
      batch: examples along the leading axis of every leaf.
      chunk: examples to work on at once.

    Raises:
      ValueError: `chunk` is no integer of at least 1, or the batch is no batch.
    """
    count = _rows(batch)
    each = jax.vmap(loss_fn, (None, 0))
    parts = jax.lax.map(lambda part: each(params, part[0]), _chunks(batch, chunk))
    return parts.T.reshape(-1)[:count]


class Opposing(NamedTuple):
    """Examples that a step moved apart.

    Attributes:
      rose: `(count,)`, places of those whose loss rose most, the first the most.
      fell: `(count,)`, places of those whose loss fell most.
      cosine: between the mean gradients of the two groups at the point before the
        step; near -1 where what helps one group hurts the other. 0 where a group has
        no gradient.
    """

    rose: jax.Array
    fell: jax.Array
    cosine: jax.Array


def opposing(
    loss_fn: Loss, before: PyTree, after: PyTree, batch: PyTree, *, count: int
) -> tuple[Opposing, jax.Array]:
    """The examples of a fixed probe batch that a step pulls apart.

    Args:
      loss_fn: `loss_fn(params, example)` -> scalar.
      before: parameters before the step.
      after: and after it.
      batch: the probe, examples along the leading axis of every leaf.
      count: size of each group, at most half of the examples.

    Returns:
      The groups, and the change of every example's loss, `(rows,)`.

    Raises:
      ValueError: `count` is no integer from 1 to half of the examples.

    References:
      Rosenfeld and Risteski, `Outliers with Opposing Signals Have an Outsized Effect on
      Neural Network Optimization <https://arxiv.org/abs/2311.04163>`_.
    """
    rows = _rows(batch)
    checks.positive_int(count=count)
    if 2 * count > rows:
        raise ValueError(f"count must be at most {rows // 2}, half of the examples")
    change = example_losses(loss_fn, after, batch)
    change = change - example_losses(loss_fn, before, batch)
    order = jnp.argsort(-change)
    rose, fell = order[:count], order[::-1][:count]

    def gradient(group):
        own = jax.tree.map(lambda x: jnp.take(x, group, axis=0), batch)
        return jax.grad(lambda p: jnp.mean(example_losses(loss_fn, p, own)))(before)

    one, other = gradient(rose), gradient(fell)
    norms = jnp.sqrt(dot(one, one)) * jnp.sqrt(dot(other, other))
    cosine = jnp.where(norms > 0, dot(one, other) / _above(norms), 0.0)
    return Opposing(rose, fell, cosine), change


def _above(x: jax.Array) -> jax.Array:
    """What may be divided by."""
    return jnp.where(x > 0, x, 1)


def _rows(batch: PyTree) -> int:
    sizes = {x.shape[0] if x.ndim else 0 for x in map(jnp.asarray, _leaves(batch))}
    if len(sizes) != 1 or not min(sizes):
        raise ValueError(
            "batch must have its examples along the leading axis of every leaf, got "
            f"leaves of {sorted(sizes)} examples"
        )
    return sizes.pop()


def _leaves(batch: PyTree) -> list[Any]:
    leaves = jax.tree.leaves(batch)
    if not leaves:
        raise ValueError("batch must have at least one leaf, got none")
    return leaves


def _chunks(batch: PyTree, chunk: int) -> tuple[PyTree, np.ndarray]:
    """Rows as `(chunks, chunk, ...)`, filled up with the first, and which are real.

    A chunk is every so many rows, so that each device of a mesh works on its own.
    """
    checks.positive_int(chunk=chunk)
    rows = _rows(batch)
    count = -(-rows // min(chunk, rows))
    chunk = -(-rows // count)
    real = np.arange(count * chunk) < rows

    def cut(x):
        x = jnp.asarray(x)
        if not real.all():
            filling = jnp.broadcast_to(x[:1], (count * chunk - rows, *x.shape[1:]))
            x = jnp.concatenate([x, filling])
        return x.reshape(chunk, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch), real.reshape(chunk, count).T


def _kept(gradients: jax.Array, real: jax.Array) -> jax.Array:
    """Gradients in float32 at least, those of filling at 0."""
    gradients = gradients.astype(at_least_float32(gradients.dtype))
    mask = real.reshape(-1, *(1,) * (gradients.ndim - 1))
    return jnp.where(mask, gradients, 0)
