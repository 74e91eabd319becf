"""A page for every method, from its file's docstring, its signature and these words."""

import inspect
from typing import NamedTuple

from docs.site import docstrings, numbers
from optlab import registry


class Words(NamedTuple):
    """What a method's page says in plain words.

    Attributes:
      title: the page's heading.
      line: what it is in one sentence.
      idea: how it works, without equations.
      tune: what to tune after the rate, in this order.
      skip: when to take something else.
      theirs: argument -> its value in the paper and in the authors' code; "—" where
        it is not public or we do not know it.
    """

    title: str
    line: str
    idea: str
    tune: str
    skip: str
    theirs: dict[str, tuple[str, str]]


METHODS = {
    "cosmos": Words(
        "COSMOS",
        "SOAP where the gradient is strong, Muon everywhere else.",
        """A few directions carry most of a gradient, and they change slowly. COSMOS
keeps a basis of the `rank` strongest input directions of each matrix. In that basis
it does what SOAP does: every coordinate is divided by the root of its mean square, as
in Adam. What is left of the momentum outside of the basis is orthogonalized, as in
Muon. Both parts are added, and the sum is scaled so that the root mean square of the
update is the learning rate.

The basis is small, so it costs far less memory than SOAP's two full ones, and it is
refreshed at every step by one QR decomposition of a thin matrix.""",
        """`rank` (the paper takes 5% of the width), then `gamma`, the weight of the
orthogonalized part (0.25 to 0.5 in the paper), then `adam_learning_rate`, the rate of
embeddings, heads and vectors. Without it they take `learning_rate`; the authors train
them 5 to 10 times faster than the matrices.""",
        """For a model of few and small matrices AdamW is simpler. The step that makes
the bases needs a decomposition of each matrix, which accelerators are slow at: see
[what a step costs on a mesh](../scaling.md).""",
        {
            "b1": ("0.95", "0.95"),
            "b2": ("0.95", "0.95"),
            "eps": ("—", "1e-8"),
            "rank": ("5% of the width", "64"),
            "gamma": ("0.25 to 0.5", "0.2"),
            "weight_decay": ("0.1", "0.1 / `lr_ratio`"),
            "adam_b1": ("—", "0.9, fixed"),
        },
    ),
    "root": Words(
        "ROOT",
        "Muon with outliers clipped and with coefficients that fit the matrix.",
        """Muon makes all singular values of the momentum nearly equal. Two things
disturb that. A few huge entries of the momentum turn all its directions: ROOT clips,
in each matrix and at each step, what lies above the 0.9 quantile of the absolute
values. And the polynomial that Muon uses is the same for all shapes, although the
singular values of a wide matrix lie elsewhere than those of a square one: ROOT takes
coefficients that are fitted to the shape, so that the result is closer to orthogonal
for the same work.""",
        """`adam_learning_rate` (AdamW's own best rate), then `quantile`. With
`ns_steps=4` the orthogonalization is still closer than Muon's with five and needs a
fifth less arithmetic on square matrices.""",
        """If your momenta have no outliers, clipping at the 0.9 quantile throws away
a part of a clean signal: `quantile=1.0` keeps all of it.""",
        {
            "momentum": ("0.95", "0.95"),
            "quantile": ("0.9", "0.9"),
            "ns_steps": ("5", "5"),
            "ns_coeffs": ("by shape", "by shape for four shapes, else Muon's"),
            "weight_decay": ("0.1", "0.1"),
            "adam_b1": ("—", "0.9"),
            "adam_b2": ("—", "0.95"),
        },
    ),
    "muon": Words(
        "Muon",
        "The momentum of a matrix, with all its singular values made equal.",
        """A gradient of a matrix usually has a few large singular values and many
small ones. A step along it moves the weights in a few directions only. Muon replaces
the momentum by the nearest matrix with orthogonal rows or columns: the directions
stay, and all of them get the same length. A polynomial of the matrix does this
without a singular value decomposition (Newton-Schulz).

By default the update is scaled to a root mean square of 0.2 (Moonlight's choice), so
that rates near AdamW's work.""",
        """`adam_learning_rate`, the rate of embeddings, heads and vectors, which keep
AdamW's best rate. Then `weight_decay`.""",
        """For models without hidden matrices, and where AdamW's step already waits
for the links of a large mesh: orthogonalization needs whole matrices.""",
        {
            "momentum": ("0.95", "0.95"),
            "nesterov": ("yes", "yes"),
            "ns_steps": ("5", "5"),
            "consistent_rms": ("0.2 (Moonlight)", "none (Jordan)"),
            "weight_decay": ("0.1 (Moonlight)", "—"),
        },
    ),
    "scion": Words(
        "Scion",
        "A step of fixed size to the corner of a ball, by the kind of leaf.",
        """Each kind of leaf has a norm: the spectral norm for hidden matrices, the
largest entry for embeddings and heads, the root mean square for vectors. Scion
averages the gradients and steps along the point of the unit ball of that norm which
the average points to most. The gradient decides the direction of a step and not its
length. In the constrained form the weights shrink by the rate at each step, so that
they stay within a ball of a radius that you choose; this takes the place of weight
decay.

One set of rates and radii should then fit all widths of a model.""",
        """`embedding_radius` and `hidden_radius`: their quotient is the quotient of
the two step sizes. Then `constrained`.""",
        """If your weights need to grow beyond the radius, or if weight decay is a
part of your recipe: the constrained form has its own.""",
        {
            "learning_rate": ("—", "3.6e-4 for nanoGPT"),
            "b1": ("0.9", "0.9 (`momentum` 0.1)"),
            "hidden_radius": ("50", "50"),
            "embedding_radius": ("3000", "3000"),
            "ns_steps": ("5", "5, in bfloat16"),
        },
    ),
    "lanton": Words(
        "LANTON",
        "Scion's steps, with a smaller rate where gradients are noisy.",
        """Layers of one model have different amounts of gradient noise. LANTON
measures it: the norm of the difference between the gradients of two steps, averaged
over time. A layer with more noise than the quietest one of its group gets a smaller
rate. The direction is the same as in Scion, orthogonalized momentum for hidden
matrices.""",
        """`alpha`: the noise at which a layer's rate begins to fall. Large values
turn the adaptation off, small ones make the rates depend on the noise alone. Then
`vector_learning_rate` and `embedding_learning_rate`. `dual_norm="lanczos"` measures
the noise with hardly any arithmetic.""",
        """The authors released no code and the paper leaves some choices open. The
previous gradient is stored, so that the state is as large as AdamW's.""",
        {
            "b1": ("0.95", "no code"),
            "b2": ("0.9 (not confirmed)", "no code"),
            "alpha": ("1 (not confirmed)", "no code"),
            "exponent": ("1/2 (not confirmed)", "no code"),
        },
    ),
    "soap": Words(
        "SOAP",
        "Adam in a rotated space, where the gradient's entries are independent.",
        """Adam treats every entry of a matrix alone. The entries of a gradient are
not independent: rows move together, and so do columns. SOAP keeps the covariance of
the rows and that of the columns, takes their eigenvectors as new axes, and runs Adam
along those. The axes are refreshed every ten steps, and Adam's averages turn with
them.""",
        """`precondition_interval`: more often is better and costs more.
`one_sided=True` rotates the shorter side only, for about half of the extra memory.""",
        """When memory is short: it keeps the most state of all methods here. The
steps that refresh the bases need decompositions, which accelerators are slow at: see
[what a step costs on a mesh](../scaling.md).""",
        {
            "learning_rate": ("3e-3", "3e-3"),
            "b1": ("0.95", "0.95"),
            "b2": ("0.95", "0.95"),
            "eps": ("1e-8", "1e-8"),
            "precondition_interval": ("10", "10"),
            "max_dim": ("10000", "10000"),
            "weight_decay": ("—", "0.01"),
        },
    ),
    "spam": Words(
        "SPAM",
        "Adam that clips spikes of the gradient and forgets its past at intervals.",
        """Sometimes single entries of a gradient are hundreds of times larger than
usual. Adam remembers such a spike for hundreds of steps in its second moment. SPAM
clips an entry whose square is more than 5000 times its running mean, and sets both
moments to zero every 500 steps, followed by a short warm-up of the rate. With
`density` below one only a random part of each matrix has moments and is updated until
the next reset, which saves memory.""",
        """`reset_interval`, then `spike_threshold`. `density=0.25` keeps a quarter of
the moments of the matrices.""",
        """In runs without spikes the resets only cost: [Stable-SPAM](stable_spam.md)
did better in our sweep.""",
        {
            "b1": ("0.9", "0.9"),
            "b2": ("0.999", "0.999"),
            "eps": ("—", "1e-6"),
            "spike_threshold": ("5000", "5000"),
            "reset_interval": ("500", "500"),
            "warmup_steps": ("150", "150"),
            "clip_start_step": ("—", "20"),
        },
    ),
    "stable_spam": Words(
        "Stable-SPAM",
        "Adam on gradients whose largest entry and whose norm are kept steady.",
        """SPAM's threshold is one fixed number. Stable-SPAM follows two running
averages for each tensor instead: the largest entry, above which entries are clipped,
and the norm, to which the whole gradient is scaled. Then comes Adam, with its moments
set to zero at intervals. It was made for training in 4 bits and helps in 16 and 32
too.""",
        """`reset_interval` (1000; the authors take 500 in 4 bits), then `gamma1` and
`gamma2`, how fast the norm is followed.""",
        """If the length of your gradients carries information that you need, as with
importance weights: the norm is replaced by its running mean.""",
        {
            "b1": ("0.9", "0.9"),
            "b2": ("0.999", "0.999"),
            "eps": ("—", "1e-8"),
            "gamma1": ("0.7", "0.7"),
            "gamma2": ("0.9", "0.9"),
            "gamma3": ("0.999", "0.999"),
            "reset_interval": ("1000", "1000 (500 in 4 bits)"),
            "total_steps": ("—", "off"),
        },
    ),
    "lion": Words(
        "Lion",
        "The sign of the momentum: every entry moves by the same amount.",
        """Lion was found by a search over programs. It mixes the momentum with the
new gradient and keeps the sign alone. All entries of all leaves move by the learning
rate, up or down. It needs one momentum and no second moment: half of AdamW's state.""",
        """`weight_decay`: 3 to 10 times AdamW's, so that rate times decay stays. Then
`b1` and `b2`: 0.95 and 0.98 for language models.""",
        """With small batches, where the sign of a noisy entry is random. In our short
sweep it was behind AdamW.""",
        {
            "learning_rate": ("a third to a tenth of AdamW's", "—"),
            "b1": ("0.9 (0.95 for language models)", "0.9"),
            "b2": ("0.99 (0.98 for language models)", "0.99"),
            "weight_decay": ("3 to 10 times AdamW's", "—"),
        },
    ),
    "adahessian": Words(
        "AdaHessian",
        "Adam with the curvature of the loss in the place of the squared gradient.",
        """Newton's method divides the gradient by the curvature. AdaHessian estimates
the diagonal of the Hessian with one random vector of signs: multiply the Hessian with
the vector, then entry by entry with the vector again. The estimate is averaged over
the entries of a block (the input side of a matrix, the window of a convolution),
since a single one is noisy, and over time, as Adam does with squared gradients.""",
        """`hessian_interval`: with 5 the curvature is taken at every fifth step only,
for 1.2 instead of 2 times SGD's time (the paper's figure). Then `hessian_power`.""",
        """When two more gradients a step are too much, or when the model has layers
without second derivatives. In our short sweep it was behind AdamW.""",
        {
            "learning_rate": ("0.15 (CIFAR)", "0.15"),
            "b1": ("0.9", "0.9"),
            "b2": ("0.999", "0.999"),
            "eps": ("—", "1e-4"),
            "hessian_power": ("1", "1"),
            "average": ("signed", "abs"),
            "hessian_interval": ("1 to 5", "not there"),
        },
    ),
}


def default(value: object) -> str:
    """An argument's default as a table shows it."""
    if value is inspect.Parameter.empty:
        return "to be given"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def defaults_table(name: str) -> str:
    """Every argument with the values of the paper, the authors' code and ours."""
    theirs = METHODS[name].theirs
    ours = inspect.signature(registry.get(name).factory).parameters
    unknown = set(theirs) - set(ours)
    if unknown:
        raise ValueError(f"{name} has no argument {', '.join(sorted(unknown))}")
    body = [
        [f"`{argument}`", *theirs.get(argument, ("—", "—")), default(found.default)]
        for argument, found in ours.items()
        if argument in theirs
    ]
    return numbers.table(["argument", "paper", "authors' code", "optlab"], body)


def example(name: str) -> str:
    """The code of a method's page, as a doctest."""
    factory = registry.get(name).factory
    text = inspect.getdoc(factory) or ""
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index("Example:") + 1
    return "\n".join(lines[start : lines.index("", start)])


def page(name: str) -> str:
    """A method's page, as Markdown."""
    words = METHODS[name]
    parts = docstrings.of_method(registry.get(name).factory.__module__)
    return f"""# {words.title}

{words.line}

## The idea

{words.idea}

![A gradient, the update that {words.title} makes of it, and the singular values of \
both](../pictures/{name}.png)

Every method gets the same thirty gradients: a few strong directions, many weak ones,
and noise. The last gradient has two entries a hundred times larger than the others. The
maps show it and the update that follows, each in units of its median entry, and
the curves their singular values. `make pictures` draws them.

## Use it

```python
{example(name)}
```

In a sweep or a run of [the runner](../runner.md): `--config.optimizer.name={name}`.

## Rate, memory and cost

{numbers.of_method(name)}

What these numbers cover, and what not, is on [Which optimizer](../which.md).

**Tune next:** {words.tune}

**Take something else:** {words.skip}

## Equations

{parts.equations}
## Defaults

{defaults_table(name)}

"—" means that it is not said there, or that we do not know it.

## Where it differs from the authors' code

{parts.deviations}
## References

{parts.references}

## Arguments

::: optlab.{name}

::: optlab.scale_by_{name}
"""
