"""Counts a program's floating-point operations by walking its jaxpr.

XLA's own cost analysis counts a loop's body once and LAPACK calls and sorts as
nothing. Here a scan's body counts as often as it runs, a `cond` as its most expensive
branch, factorizations by the textbook (Golub and Van Loan, 4th ed.), to leading order.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# One threefry-2x32 hash: 20 rounds of five operations, five key injections of three.
_HASH = 115

# Data movement and bookkeeping.
_FREE = frozenset(
    {
        "all_gather",
        "all_to_all",
        "axis_index",
        "bitcast_convert_type",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "create_token",
        "device_put",
        "dynamic_slice",
        "dynamic_update_slice",
        "empty",
        "empty2",
        "expand_dims",
        "full",
        "gather",
        "iota",
        "layout_constraint",
        "optimization_barrier",
        "pad",
        "pcast",
        "ppermute",
        "pvary",
        "random_seed",
        "random_unwrap",
        "random_wrap",
        "reduce_precision",
        "reshape",
        "rev",
        "scatter",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
_REDUCTIONS = frozenset(
    {
        "argmax",
        "argmin",
        "cumlogsumexp",
        "cummax",
        "cummin",
        "cumprod",
        "cumsum",
        "reduce",
        "reduce_and",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_prod",
        "reduce_sum",
        "reduce_xor",
    }
)
_SCATTERS = frozenset(
    {"scatter-add", "scatter_add", "scatter_max", "scatter_min", "scatter_mul"}
)
# These run code that no jaxpr shows, or have no count here.
_OPAQUE = frozenset(
    {
        "eig",
        "ffi_call",
        "geqp3",
        "hessenberg",
        "io_callback",
        "pallas_call",
        "pure_callback",
        "ragged_dot_general",
        "schur",
        "tridiagonal",
        "tridiagonal_solve",
    }
)


class Flops(NamedTuple):
    """Operations of one call; a multiply-add is two.

    Attributes:
      matmul: matrix products and convolutions, exact.
      elementwise: one per element of elementwise operations and reductions.
      factorization: QR, eigh, SVD and their kin, sorts and FFTs, to leading order.
    """

    matmul: int = 0
    elementwise: int = 0
    factorization: int = 0

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return sum(self)


def count_flops(
    fn: Callable[..., Any],
    *args,
    while_trips: int | None = None,
    cheapest_branch: bool = False,
    platform: str = "cpu",
) -> Flops:
    """Counts the operations of `fn(*args)`, over all devices that take part.

    Code whose result is not used does not count, as in the compiled program, and
    elements that depend on no argument do not: they are not made at every turn of a
    loop.

    Args:
      fn: a function that JAX can trace.
      *args: its arguments; `jax.ShapeDtypeStruct` leaves will do.
      while_trips: how often a while loop runs whose length the program does not
        show; counted loops `i = a; while i < b: i += 1` with constant a and b
        show it.
      cheapest_branch: take the cheapest branch of every `cond` instead of the
        most expensive: what a step costs when nothing special is due.
      platform: whose branch is taken where the program asks what it is lowered for.

    Returns:
      The operations of one call.

    Raises:
      ValueError: a while loop's length is unknown and `while_trips` was not given,
        or the program has an operation that cannot be counted.
    """
    closed = jax.make_jaxpr(fn)(*args)
    used = [True] * len(closed.jaxpr.outvars)
    counter = _Counter(while_trips, min if cheapest_branch else max, platform)
    return counter.jaxpr(partial_eval.dce_jaxpr(closed.jaxpr, used)[0])


def branches_on(platform: str, params: Mapping[str, Any]) -> Sequence[Any]:
    """The branches of a `cond` that are left when it is lowered for a platform.

    All of them, unless it came from `jax.lax.platform_dependent`; then one.
    """
    platforms = params.get("branches_platforms")
    if platforms is None:
        return params["branches"]
    named = [i for i, names in enumerate(platforms) if names and platform in names]
    return [params["branches"][(named or [platforms.index(None)])[0]]]


class _Counter:
    """The walk, with what it needs to know on the way."""

    def __init__(self, while_trips: int | None, choose: Callable, platform: str):
        self._while_trips = while_trips
        self._choose = choose
        self._platform = platform

    def jaxpr(self, jaxpr) -> Flops:
        counts, fixed = [], set()
        for eqn in jaxpr.eqns:
            flops = self._equation(eqn)
            if _is_fixed(eqn, fixed):
                fixed.update(eqn.outvars)
                flops = flops._replace(elementwise=0)
            counts.append(flops)
        return _add(*counts)

    def _equation(self, eqn) -> Flops:
        name, params = eqn.primitive.name, eqn.params
        if name in _OPAQUE:
            raise ValueError(f"cannot count the operations of {name}")
        if name == "scan":
            return _times(params["length"], self.jaxpr(params["jaxpr"].jaxpr))
        if name == "while":
            trips = _trips(eqn) if self._while_trips is None else self._while_trips
            body = self.jaxpr(params["body_jaxpr"].jaxpr)
            test = self.jaxpr(params["cond_jaxpr"].jaxpr)
            return _add(_times(trips, body), _times(trips + 1, test))
        if name == "cond":
            taken = branches_on(self._platform, params)
            branches = [self.jaxpr(branch.jaxpr) for branch in taken]
            return self._choose(branches, key=lambda flops: flops.total)
        if name == "custom_linear_solve":
            return self.jaxpr(params["jaxprs"].solve.jaxpr)
        if name == "shard_map":
            axes = params["newly_manual_axes"]
            devices = math.prod(params["mesh"].shape[axis] for axis in axes)
            return _times(devices, self.jaxpr(params["jaxpr"]))
        inner = list(core.jaxprs_in_params(params))
        # A sum's or maximum's combiner is no extra work.
        if inner and not name.startswith(("reduce", "scatter")):
            return _add(*(self.jaxpr(body) for body in inner))
        return _leaf(eqn)


def _is_fixed(eqn, fixed: set) -> bool:
    """Whether an equation needs no argument, as those of an identity matrix."""
    return not eqn.primitive.name.startswith(("random", "threefry")) and all(
        isinstance(var, core.Literal) or var in fixed for var in eqn.invars
    )


def _leaf(eqn) -> Flops:
    """The operations of an equation without a body."""
    name = eqn.primitive.name
    in_shapes = [var.aval.shape for var in eqn.invars]
    out_size = sum(math.prod(var.aval.shape) for var in eqn.outvars)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        depth = math.prod(in_shapes[0][axis] for axis in contracted)
        return Flops(matmul=2 * out_size * depth)
    if name == "conv_general_dilated":
        return Flops(matmul=_convolution(eqn))
    if name in _FACTORIZATIONS:
        *batch, rows, cols = in_shapes[0]
        each = _FACTORIZATIONS[name](rows, cols, eqn)
        return Flops(factorization=round(math.prod(batch) * each))
    if name in ("sort", "top_k"):
        axis = eqn.params.get("dimension", -1)
        length = in_shapes[0][axis]
        return Flops(
            factorization=round(math.prod(in_shapes[0]) * math.log2(max(length, 1)))
        )
    if name == "fft":
        length = math.prod(eqn.params["fft_lengths"])
        size = max(out_size, math.prod(in_shapes[0]))
        return Flops(factorization=round(5 * size * math.log2(max(length, 1))))
    if name in _FREE:
        return Flops()
    if name in ("random_bits", "random_split", "random_fold_in", "threefry2x32"):
        return Flops(elementwise=_HASH * out_size // len(eqn.outvars))
    if name in _REDUCTIONS:
        return Flops(elementwise=math.prod(in_shapes[0]))
    if name in _SCATTERS:
        return Flops(elementwise=math.prod(in_shapes[2]))
    if name.startswith("reduce_window"):
        return Flops(elementwise=out_size * math.prod(eqn.params["window_dimensions"]))
    return Flops(elementwise=out_size)


def _convolution(eqn) -> int:
    """Products of the kernel with what is there, not with padding or dilation."""
    lhs, rhs = (var.aval.shape for var in eqn.invars)
    out = eqn.outvars[0].aval.shape
    params, spec = eqn.params, eqn.params["dimension_numbers"]
    pairs = 1
    for axis, (low, _) in enumerate(params["padding"]):
        size = lhs[spec.lhs_spec[2 + axis]]
        dilation = params["lhs_dilation"][axis]
        position = (
            np.arange(out[spec.out_spec[2 + axis]])[:, None]
            * params["window_strides"][axis]
            + np.arange(rhs[spec.rhs_spec[2 + axis]]) * params["rhs_dilation"][axis]
            - low
        )
        inside = (position >= 0) & (position <= (size - 1) * dilation)
        pairs *= int(np.sum(inside & (position % dilation == 0)))
    batch, features = out[spec.out_spec[0]], out[spec.out_spec[1]]
    return 2 * batch * features * rhs[spec.rhs_spec[1]] * pairs


def _geqrf(rows: int, cols: int) -> float:
    k = min(rows, cols)
    return 4 * rows * cols * k - 2 * (rows + cols) * k**2 + 4 * k**3 / 3


def _form_q(rows: int, cols: int, k: int) -> float:
    """The first `cols` columns of the product of `k` reflectors."""
    return 4 * rows * cols * k - 2 * (rows + cols) * k**2 + 4 * k**3 / 3


def _qr(rows, cols, eqn):
    columns = eqn.outvars[0].aval.shape[-1]
    return _geqrf(rows, cols) + _form_q(rows, columns, min(rows, cols))


def _svd(rows, cols, eqn):
    m, n = max(rows, cols), min(rows, cols)
    if not eqn.params["compute_uv"]:
        return 4 * m * n**2 - 4 * n**3 / 3
    if eqn.params["full_matrices"] and m > n:
        return 4 * m**2 * n + 8 * m * n**2 + 9 * n**3
    return min(14 * m * n**2 + 8 * n**3, 6 * m * n**2 + 20 * n**3)


def _triangular_solve(rows, cols, eqn):
    del cols
    return rows * math.prod(eqn.invars[1].aval.shape[-2:])


_FACTORIZATIONS = {
    "cholesky": lambda rows, cols, eqn: rows**3 / 3,
    "eigh": lambda rows, cols, eqn: 9 * rows**3,
    "geqrf": lambda rows, cols, eqn: _geqrf(rows, cols),
    "householder_product": lambda rows, cols, eqn: _form_q(
        rows, cols, eqn.invars[1].aval.shape[-1]
    ),
    "lu": lambda rows, cols, eqn: _geqrf(rows, cols) / 2,
    "qr": _qr,
    "svd": _svd,
    "triangular_solve": _triangular_solve,
}


def _trips(eqn) -> int:
    """The length of a counted while loop."""
    unknown = ValueError("the length of a while loop is not known: give while_trips")
    params = eqn.params
    cond, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    carry = eqn.invars[n_cond + n_body :]
    known = {
        var: operand.val
        for var, operand in zip(cond.invars, eqn.invars[:n_cond] + carry, strict=True)
        if isinstance(operand, core.Literal)
    }
    if len(cond.eqns) != 1 or cond.eqns[0].primitive.name != "lt":
        raise unknown
    counter, limit = cond.eqns[0].invars
    if isinstance(counter, core.Literal) or counter not in cond.invars[n_cond:]:
        raise unknown
    index = cond.invars.index(counter) - n_cond
    bound = limit.val if isinstance(limit, core.Literal) else known.get(limit)
    if not isinstance(limit, core.Literal) and limit in cond.invars[n_cond:]:
        position = cond.invars.index(limit) - n_cond
        if body.outvars[position] is not body.invars[n_body + position]:
            raise unknown
    steps = [
        other.val
        for e in body.eqns
        if e.outvars[0] is body.outvars[index] and e.primitive.name == "add"
        for var, other in (e.invars, e.invars[::-1])
        if var is body.invars[n_body + index] and isinstance(other, core.Literal)
    ]
    if counter not in known or bound is None or not steps or steps[0] <= 0:
        raise unknown
    return max(-(-(int(bound) - int(known[counter])) // int(steps[0])), 0)


def _add(*counts: Flops) -> Flops:
    return Flops(*map(sum, zip(Flops(), *counts, strict=True)))


def _times(factor: int, flops: Flops) -> Flops:
    return Flops(*(factor * count for count in flops))
