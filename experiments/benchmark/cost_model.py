"""What an optimizer step costs a device on any mesh, worked out from shapes alone.

Nothing is compiled, and no device is needed: `step_cost` traces one device's share of
the step and adds up what `optlab.sharding.over_mesh` moves. docs/scaling.md has the
assumptions and what follows from them; the tests hold the model against scaling.csv.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import AbstractMesh

import optlab
from experiments.flops import branches_on, count_flops
from optlab import sharding
from optlab.sharding.distribution import OverMesh, matrix_axis


class Cost(NamedTuple):
    """Of one step on one device.

    Attributes:
      products: operations of matrix products by what they are made in, a name of
        `Chip.rates`.
      factorizations: operations of QR and eigh.
      elements: operations on single elements.
      exchanged: bytes of each all-to-all's result.
      gathered: bytes of each all-gather's result.
      memory: bytes read from and written to the device's memory.
      state: bytes of the optimizer's state.
    """

    products: Mapping[str, float]
    factorizations: float
    elements: float
    exchanged: tuple[int, ...]
    gathered: tuple[int, ...]
    memory: float
    state: int

    @property
    def multiplied(self) -> float:
        """Operations of all products."""
        return sum(self.products.values())

    @property
    def moved(self) -> int:
        """Bytes of the results of all collectives."""
        return sum(self.exchanged) + sum(self.gathered)


class Chip(NamedTuple):
    """A chip's published peaks.

    Attributes:
      platform: what programs for it are lowered for.
      rates: operations a second of products in "float32", "tf32" (where there is such
        a thing), "bfloat16" and "bfloat16 x3", float32 in three passes.
      memory: bytes a second.
      link: bytes a second out of the chip: over NVLink, or one link of the torus.
      axes: of the torus; 0 where a switch joins all chips of a node.
      reach: chips that those links join.
      network: bytes a second and chip to those beyond; 0 for not beyond.
      latency: seconds of a collective.
      source: of the numbers.
    """

    platform: str
    rates: Mapping[str, float]
    memory: float
    link: float
    axes: int
    reach: int
    network: float
    latency: float
    source: str


_NVIDIA = "NVIDIA {} datasheet (SXM); ConnectX-7, 400 Gb/s a GPU"
_GOOGLE = "cloud.google.com/tpu/docs/{}; float32 is six bfloat16 passes"


def _rates(bfloat16: float, float32: float, **more: float) -> Mapping[str, float]:
    own = {"bfloat16": bfloat16, "bfloat16 x3": bfloat16 / 3, "float32": float32}
    return own | more


_HOPPER = _rates(989e12, 67e12, tf32=494.5e12)
CHIPS = {
    "H100": Chip(
        "cuda",
        *(_HOPPER, 3.35e12, 450e9, 0, 8, 50e9, 20e-6, _NVIDIA.format("H100")),
    ),
    "H200": Chip(
        "cuda",
        *(_HOPPER, 4.8e12, 450e9, 0, 8, 50e9, 20e-6, _NVIDIA.format("H200")),
    ),
    "TPU v5e": Chip(
        *("tpu", _rates(197e12, 197e12 / 6)),
        *(819e9, 50e9, 2, 256, 0, 5e-6, _GOOGLE.format("v5e")),
    ),
    "TPU v5p": Chip(
        *("tpu", _rates(459e12, 459e12 / 6)),
        *(2765e9, 100e9, 3, 8960, 0, 5e-6, _GOOGLE.format("v5p")),
    ),
}
# QR and eigh reach about this share of the peak of float32 products.
FACTORIZATION_SHARE = 0.005


class _Share(OverMesh):
    """Stands for `over_mesh`: one device's share is worked out, moves are noted."""

    def __init__(self, devices: int):
        super().__init__(AbstractMesh((devices,), ("data",)), ("data",))
        self.exchanged: list[int] = []
        self.gathered: list[int] = []

    def __call__(
        self, f: Callable[..., Any], matrices: int, stacks: Sequence[int]
    ) -> Callable[..., Any]:
        """`f` on as many matrices as the busiest device has."""

        def spread(*groups: Any) -> Any:
            counts = [group[0].shape[0] for group in groups]
            shares = [-(-count // self.size) for count in counts]
            own = (
                tuple(x[:share] for x in group)
                for group, share in zip(groups, shares, strict=True)
            )
            results = f(*own)
            for before, after, share, length in zip(
                groups, results, shares, stacks, strict=True
            ):
                self._note(before, matrices, share, length, back=False)
                self._note(after, 1, share, length, back=True)
            return tuple(
                jax.tree.map(functools.partial(_repeat, n), result)
                for result, n in zip(results, counts, strict=True)
            )

        return spread

    def _note(self, arrays, matrices: int, share: int, length: int, back: bool) -> None:
        """The moves of a group, by the rule of `OverMesh`."""
        if self.size == 1:
            return
        together: dict[Any, int] = {}
        for i, x in enumerate(arrays):
            if x is None or (i >= matrices and self.lives_by_stack(length)):
                continue
            local = share * math.prod(x.shape[1:]) * x.dtype.itemsize
            if matrix_axis(x.shape[1:], self.size) is not None:
                together[x.dtype] = together.get(x.dtype, 0) + local
            elif back:
                self.gathered.append(local * self.size)
        self.exchanged.extend(together.values())


def _repeat(count: int, x: jax.Array) -> jax.Array:
    """A stack of that many slices; which ones does not matter."""
    return jnp.pad(x, [(0, count - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def step_cost(
    method: str,
    params: Any,
    devices: int,
    *,
    usual: bool = False,
    platform: str = "cpu",
    **kwargs: Any,
) -> Cost:
    """What one step costs a device, its parameters cut by rows over all of them.

    A matrix method that takes `distribute` works on whole matrices apart. One that
    does not is left to the compiler, which cuts each product by rows and gathers its
    right operand.

    Args:
      method: a name of the registry.
      params: tree of `jax.ShapeDtypeStruct`.
      devices: that the work is spread over.
      usual: whether to take a step on which no basis is made or refreshed. The other
        one has, of each kind of operation, what the most expensive step has.
      platform: what the program is lowered for: "cpu", "cuda" or "tpu".
      **kwargs: arguments for the method.

    Returns:
      The cost of one step.
    """
    entry = optlab.registry.get(method)
    apart = entry.takes("distribute")
    share = _Share(devices)

    def build(distribute: Any) -> tuple[Any, Callable[..., Any]]:
        tx = entry.build(1e-3, **kwargs | {"distribute": distribute})

        def update(grads, state, params):
            return tx.update(grads, state, params, **dict.fromkeys(entry.needs, grads))

        return tx, update

    tx, update = build(_Share(1))
    state = jax.eval_shape(tx.init, params)
    count = functools.partial(
        count_flops, while_trips=1, cheapest_branch=usual, platform=platform
    )
    whole = count(update, params, state, params)
    busiest, each = whole.factorization / devices, devices
    if apart:
        tx, update = build(_Share(devices))
        state = jax.eval_shape(tx.init, params)
        busiest, each = count(update, params, state, params).factorization, 1
        # A function that was traced would not be traced again.
        tx, update = build(share)
    jaxpr = jax.make_jaxpr(update)(params, state, params).jaxpr
    products = _products(jaxpr, min if usual else max, platform)
    if not apart and devices > 1:
        share.gathered = [product.right for product in products]
    made: dict[str, float] = {}
    for product in products:
        made[product.form] = made.get(product.form, 0) + product.flops / each
    specs = sharding.param_specs(params, sharding.fsdp_rules(share.mesh))
    layouts = sharding.state_specs(
        tx, params, specs, distribute=share if apart else None
    )
    kept = _local_bytes(share.mesh, state, layouts)
    own = _local_bytes(share.mesh, params, specs)
    moved = sum(share.exchanged) + sum(share.gathered)
    return Cost(
        products=made,
        factorizations=busiest,
        elements=whole.elementwise * own / _local_bytes(share.mesh, params, None),
        exchanged=tuple(share.exchanged),
        gathered=tuple(share.gathered),
        # Gradients in, parameters in and out, state in and out; packed, sent,
        # received and unpacked.
        memory=3 * own + 2 * kept + 4 * moved,
        state=kept,
    )


def _local_bytes(mesh: AbstractMesh, tree: Any, specs: Any) -> int:
    leaves = jax.tree.leaves(tree)
    whole = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
    if specs is None:
        return sum(whole)
    layouts = jax.tree.leaves(sharding.to_shardings(mesh, specs))
    return sum(
        math.prod(layout.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, layout in zip(leaves, layouts, strict=True)
    )


class _Product(NamedTuple):
    """A product that runs: its operations, its form, its right operand's bytes."""

    flops: int
    form: str
    right: int


def _products(jaxpr, choose: Callable[..., Any], platform: str) -> list[_Product]:
    """The products that run on a platform."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            left, right = (x.aval for x in eqn.invars)
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(left.shape[axis] for axis in contracted)
            flops = 2 * eqn.outvars[0].aval.size * depth
            form = _form(right.dtype, eqn.params["precision"], platform)
            found.append(_Product(flops, form, right.size * right.dtype.itemsize))
        if eqn.primitive.name == "cond":
            branches = branches_on(platform, eqn.params)
            bodies = [_products(b.jaxpr, choose, platform) for b in branches]
            bodies = [choose(bodies, key=lambda body: sum(x.flops for x in body))]
        else:
            bodies = [
                _products(b, choose, platform)
                for b in core.jaxprs_in_params(eqn.params)
            ]
        found += [x for body in bodies for x in body] * eqn.params.get("length", 1)
    return found


def _form(dtype: Any, precision: Any, platform: str) -> str:
    """What a product is made in, as `Chip.rates` calls it."""
    if dtype.itemsize < 4:
        return "bfloat16"
    if isinstance(precision, lax.DotAlgorithmPreset):
        passes = {"BF16_BF16_F32": "bfloat16", "BF16_BF16_F32_X3": "bfloat16 x3"}
        return passes[precision.name]
    level = precision[0] if isinstance(precision, tuple) else precision
    if platform == "cpu" or level == lax.Precision.HIGHEST:
        return "float32"
    if platform == "cuda":
        return "tf32"
    return "bfloat16 x3" if level == lax.Precision.HIGH else "bfloat16"


def seconds(cost: Cost, chip: Chip, devices: int) -> Mapping[str, float] | None:
    """A lower bound of the step's time on that many chips, by part.

    Args:
      cost: from `step_cost`, for the same number, and the chip's platform.
      chip: one of `CHIPS`.
      devices: that the work is spread over.

    Returns:
      Seconds of arithmetic, memory and links, which follow on one another; None where
      the chip's links do not reach so far.
    """
    if devices > chip.reach and not chip.network:
        return None
    rates = chip.rates
    arithmetic = sum(flops / rates[form] for form, flops in cost.products.items())
    arithmetic += cost.factorizations / FACTORIZATION_SHARE / rates["float32"]
    many = len(cost.exchanged) + len(cost.gathered)
    links = _exchange(sum(cost.exchanged), chip, devices) + _gather(
        sum(cost.gathered), chip, devices
    )
    return {
        "arithmetic": arithmetic,
        "memory": cost.memory / chip.memory,
        "links": links + many * chip.latency,
    }


def _exchange(size: float, chip: Chip, devices: int) -> float:
    """An all-to-all in which every device receives that many bytes."""
    if devices == 1:
        return 0.0
    if chip.axes:
        # On a ring of k each byte passes k/4 links on the average, two ways at once.
        return size * max(_side(chip, devices), 4) / 8 / chip.link
    near = min(devices, chip.reach)
    far = (devices - near) / devices * size / chip.network
    return max((near - 1) / devices * size / chip.link, far)


def _gather(size: float, chip: Chip, devices: int) -> float:
    """An all-gather after which every device has that many bytes."""
    if devices == 1:
        return 0.0
    received = (devices - 1) / devices * size
    if chip.axes:
        used = min(chip.axes, math.log2(devices))
        return received / (2 * used * chip.link)
    near = min(devices, chip.reach)
    # A node's chips share what comes from the other nodes.
    far = (devices - near) / devices * size / (chip.network * near)
    return max(received / chip.link, far)


def _side(chip: Chip, devices: int) -> int:
    """The longest side of the torus that so many chips make up."""
    return 2 ** math.ceil(math.log2(devices) / chip.axes)
