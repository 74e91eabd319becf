"""What the methods' pages say in plain words."""

from typing import NamedTuple


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
        """`adam_learning_rate` (start at AdamW's best rate; eight times that was
best in the study), then `quantile`. With `ns_steps=4` the orthogonalization is still
closer than Muon's with five and needs a fifth less arithmetic on square matrices.""",
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
        """`adam_learning_rate`, the rate of embeddings, heads and vectors: start at
AdamW's best rate; four times that was best in the study. Then `weight_decay`.""",
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
the noise with hardly any arithmetic. Its rates lie nearer to those of exact norms than
the default's: 1.0% off in the median at width 256, where the default is 7.0% off
([table](../results/benchmarks/dual_norm.md)).""",
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
`one_sided=True` rotates the shorter side only, which halves the extra memory of square
matrices and saves more for others.
`factors="kl"` takes the factors of KL-Shampoo, where each side is measured after the
other one is made even ([how they start](../wrappers.md#kl-factors)).""",
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
clips an entry whose square is more than 5000 times the running mean of its squares. It
sets both moments to zero every 500 steps, and the rate warms up briefly again. With
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
    "normuon": Words(
        "NorMuon",
        "Muon whose neurons step by the same length.",
        """Muon makes all singular values of an update nearly equal, and still some
neurons (columns of a matrix, one for each output) move much further than others.
NorMuon keeps the mean square of each neuron's update over time, one number a neuron,
and divides by its root. Then the whole update gets the size back that it had.

A matrix whose outputs are not more than its inputs has neurons of one length after
Newton-Schulz already, so that only wide matrices change much.""",
        """`adam_learning_rate`, as with Muon. Then `axis`: "longer" is the variant of
modded-nanogpt, which acts on tall matrices too.""",
        """Where no matrix is wide it is Muon with a little more state.""",
        {
            "learning_rate": ("—", "0.02"),
            "adam_learning_rate": ("—", "3e-4"),
            "momentum": ("—", "0.95"),
            "b2": ("—", "0.95"),
            "eps": ("—", "1e-10"),
            "nesterov": ("—", "yes"),
            "ns_steps": ("—", "5"),
            "weight_decay": ("—", "0"),
        },
    ),
    "muon_h": Words(
        "MuonH",
        "Muon on a sphere: every matrix keeps the norm that it started with.",
        """Weight decay and rate together decide how large the weights become, and
the size of the weights decides how much a step changes them. MuonH takes both away: a
step along Muon's direction has a length that is a share of the matrix's norm, and
the matrix is scaled back to its first norm afterwards. `learning_rate` is that share.

The picture is of a small step: what points along the weights is taken back.""",
        """`adam_learning_rate`, the rate of embeddings, heads and vectors, which stay
with AdamW. marin takes 6e-4 for large models; small models may want much more.""",
        """When matrices start at zero, as some output layers do: they would stay
zero, and are refused.""",
        {
            "learning_rate": ("—", "0.02"),
            "adam_learning_rate": ("—", "6e-4"),
            "momentum": ("—", "0.95"),
            "nesterov": ("—", "yes"),
            "ns_steps": ("—", "5"),
            "ns_coeffs": ("—", "five triples"),
        },
    ),
    "adam_h": Words(
        "AdamH",
        "Adam on a sphere: every matrix keeps the norm that it started with.",
        """The step of [MuonH](muon_h.md) along Adam's direction: a length that is a
share of the matrix's norm, and back to the sphere. Only the direction of Adam's update
counts, so that its size at the start of a training does no harm.""",
        """`adam_learning_rate`, the rate of embeddings, heads and vectors. Then
`b2`.""",
        """When matrices start at zero: they are refused.""",
        {
            "adam_learning_rate": ("—", "6e-4"),
            "b1": ("—", "0.9"),
            "b2": ("—", "0.95"),
            "eps": ("—", "1e-8"),
        },
    ),
    "cosmos_h": Words(
        "COSMOS-H",
        "COSMOS on a sphere: every matrix keeps the norm that it started with.",
        """The step of [MuonH](muon_h.md) along the direction of [COSMOS](cosmos.md).
There is no weight decay to tune, and `learning_rate` is the relative step.""",
        """`adam_learning_rate`, then `rank`, as with COSMOS.""",
        """When matrices start at zero: they are refused. No paper has it yet; it is
here because the two parts combine.""",
        {"rank": ("5% of the width", "64"), "gamma": ("0.25 to 0.5", "0.2")},
    ),
    "soap_h": Words(
        "SOAP-H",
        "SOAP on a sphere: every matrix keeps the norm that it started with.",
        """The step of [MuonH](muon_h.md) along the direction of [SOAP](soap.md). With
`factors="kl"` it is the KL-SOAP-H of modded-nanogpt's third track, whose code is in the
table.""",
        """`adam_learning_rate`, then `factors="kl"` with
`precondition_interval=1`.""",
        """When memory is short, as with SOAP, or when matrices start at zero.""",
        {
            "learning_rate": ("—", "0.018"),
            "b1": ("—", "0.95"),
            "b2": ("—", "0.9"),
            "shampoo_beta": ("—", "0.9"),
            "precondition_interval": ("—", "1"),
        },
    ),
}
