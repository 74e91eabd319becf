"""Meshes, and how parameters and an optimizer's state are laid out on them.

Parameters are laid out by ordered rules on their paths, the first match decides, and a
parameter without one is an error. State follows its parameter by path, never by size.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optlab import checks
from optlab.roles import leaf_name
from optlab.sharding.distribution import mesh_size
from optlab.state import StateLeaf, make_abstract_state, owning_parameter, state_leaves

# Patterns, each with a spec or a function of the leaf's shape that gives one.
Rules = Sequence[tuple[str, Any]]


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with named axes that the compiler shards over by itself.

    Axes are `AxisType.Auto`. Optimizers work as well on jax's default, Explicit, but a
    model's products of matrices that are cut up may raise there. Devices are ordered
    for the machine's links by jax. An axis called `slice` goes over pods (or hosts):
    its neighbours are as far apart as they can be.

    Args:
      axes: sizes by name, outermost first; one may be -1 for all remaining devices.
      devices: to use; all of `jax.devices()` by default.

    Returns:
      The mesh.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or `slice` would
        cut across pods or hosts.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict(axes)
    unknown = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(unknown) == 1 and known > 0 and len(devices) % known == 0:
        sizes[unknown[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices) or min(sizes.values()) < 1:
        raise ValueError(f"axes {dict(axes)} do not make up {len(devices)} devices")
    names, shape = tuple(sizes), tuple(sizes.values())
    kinds = (AxisType.Auto,) * len(shape)
    if "slice" not in sizes or sizes["slice"] == 1:
        return jax.make_mesh(shape, names, kinds, devices=devices)
    across = tuple(size if name == "slice" else 1 for name, size in sizes.items())
    within = tuple(1 if name == "slice" else size for name, size in sizes.items())
    return Mesh(_hybrid(within, across, devices), names, axis_types=kinds)


def _hybrid(within, across, devices) -> np.ndarray:
    """Devices by slice where they are as many, else by process, else in equal parts."""
    slices = {getattr(d, "slice_index", None) for d in devices}
    processes = {d.process_index for d in devices}
    parts = math.prod(across)
    if parts in (len(slices), len(processes)):
        return mesh_utils.create_hybrid_device_mesh(
            *(within, across, devices), process_is_granule=parts != len(slices)
        )
    unit = "slice_index" if len(slices) > 1 else "process_index"

    def place(d: Any) -> tuple[int, ...]:
        return getattr(d, "slice_index", None) or 0, d.process_index, d.id

    ordered = np.array(sorted(devices, key=place)).reshape(parts, -1)
    held = [{getattr(d, unit) for d in part} for part in ordered]
    units = len(set().union(*held))
    # A part has whole units, or a unit whole parts.
    if max(map(len, held)) > 1 and sum(map(len, held)) > units:
        raise ValueError(
            f"axes: {parts} slices would cut across the devices' {units} values of "
            f"{unit}"
        )
    front = across.index(parts)
    return np.moveaxis(ordered.reshape(parts, *within), 0, front).reshape(
        [a * b for a, b in zip(within, across, strict=True)]
    )


def param_specs(params: Any, rules: Rules) -> Any:
    """The layout of every parameter, by the first rule whose pattern is in its path.

    Args:
      params: tree of arrays or `jax.ShapeDtypeStruct`.
      rules: `(pattern, layout)` pairs; the layout is a `PartitionSpec` or a function
        of the shape. Ready ones: `fsdp_rules`, `tensor_parallel_rules`.

    Returns:
      The tree of `PartitionSpec`.

    Raises:
      ValueError: no rule matches a parameter, or its layout has too many axes.
    """

    def spec(path: Any, leaf: Any) -> P:
        name = leaf_name(path)
        for pattern, layout in rules:
            if re.search(pattern, name):
                shape = tuple(leaf.shape)
                found = layout if isinstance(layout, P) else layout(shape)
                if len(found) > len(leaf.shape):
                    raise ValueError(
                        f"rules: {pattern!r} gives {found} to {name!r} of shape "
                        f"{leaf.shape}"
                    )
                return found
        patterns = [pattern for pattern, _ in rules]
        near = difflib.get_close_matches(name, patterns, 1, 0.0)
        raise ValueError(
            f"rules: none matches {name!r}; the nearest is {near[0] if near else None}"
        )

    return jax.tree_util.tree_map_with_path(spec, params)


def fsdp_rules(mesh: Mesh, axis: str | tuple[str, ...] = "data") -> Rules:
    """Fully sharded data parallelism: each parameter over one axis of itself.

    The rows of matrices where the mesh's axis divides them, else the longest axis that
    it does divide, stack axes last; what it does not divide at all is replicated.

    Args:
      mesh: from `make_mesh`.
      axis: the name of its axis, or several names, which are cut over together.

    Returns:
      Pairs of a pattern and a layout, for `param_specs`.

    Raises:
      ValueError: the mesh has no such axis.
    """
    size = mesh_size(mesh, axis)

    def layout(shape: tuple[int, ...]) -> P:
        return _split_rows(shape, (None,) * len(shape), axis, size)

    return ((".*", layout),)


def tensor_parallel_rules(
    mesh: Mesh,
    axis: str | tuple[str, ...] = "model",
    data_axis: str | tuple[str, ...] | None = None,
) -> Rules:
    """Megatron's layout for transformers, and FSDP over `data_axis` on top of it.

    Query, key, value, gate and up are cut by columns, attention's output and down by
    rows, the embedding by the vocabulary, the head by its columns. What the mesh does
    not divide, and every other leaf, is left to `data_axis` alone.

    Args:
      mesh: from `make_mesh`.
      axis: the name of its axis for the model, or several names, which are cut over
        together.
      data_axis: likewise of its axis for the data. None: no FSDP.

    Returns:
      Pairs of a pattern and a layout, for `param_specs`.

    Raises:
      ValueError: the mesh has no such axis.
    """
    size = mesh_size(mesh, axis)
    data = 1 if data_axis is None else mesh_size(mesh, data_axis)

    def cut(place: int | None) -> Callable[[tuple[int, ...]], P]:
        def layout(shape: tuple[int, ...]) -> P:
            rank = len(shape)
            spec: list[Any] = [None] * rank
            if place is not None and -rank <= place < rank and not shape[place] % size:
                spec[place] = axis
            if data_axis is None:
                return P(*spec)
            return _split_rows(shape, spec, data_axis, data)

        return layout

    rest = cut(None)
    return (
        (r"(^|/|_)(bias|scale)(/|$)", rest),
        (r"(^|/)(q|k|v|query|key|value|qkv|gate|up|fc_in)(_?proj)?(/|$)", cut(-1)),
        (r"(^|/)(o|out|down|fc_out)(_?proj)?(/|$)", cut(-2)),
        (r"(^|/|_)(embed\w*|wte)(/|$)", cut(0)),
        (r"(^|/|_)(head|logits)(/|$)", cut(-1)),
        (".*", rest),
    )


def _split_rows(
    shape: tuple[int, ...], taken: Sequence[Any], axes: Any, size: int
) -> P:
    """Adds mesh axes to a free dimension that they divide, rows first."""
    free = [i for i, n in enumerate(shape) if taken[i] is None and n % size == 0]
    if not free or size == 1:
        return P(*taken)
    rows = len(shape) - 2
    best = max(free, key=lambda i: (i == rows, i > rows, shape[i]))
    return P(*taken[:best], axes, *taken[best + 1 :])


def state_specs(
    tx: optax.GradientTransformation,
    params: Any,
    specs: Any,
    *,
    distribute: Any = None,
) -> Any:
    """The layout of an optimizer's state, from that of its parameters.

    A leaf whose path ends in a parameter's path belongs to it: with the parameter's
    shape it is laid out like it. A factor is split over its stack axis as the matrices
    are when they are worked on, if `distribute` divides that axis, or else over its
    rows or columns; without `distribute`, as the parameter's stack axis is. Factors
    that are kept by bucket are split over the bucket's matrices. What `tx` was made
    with counts, method by method, and is found here. Numbers, one a layer, and what
    belongs to no parameter are replicated.

    Args:
      tx: any optax transformation, wrapped in any others.
      params: tree of arrays or `jax.ShapeDtypeStruct`.
      specs: tree of `PartitionSpec`; for state that is sharded further than the
        parameters (ZeRO-1), give the state's own here.
      distribute: to put in the place of what `tx` was made with.

    Returns:
      A tree of `PartitionSpec` like the state.

    Raises:
      ValueError: `tx` is no transform.
    """
    checks.transform(tx=tx)
    shapes = {tuple(p): x for p, x in jax.tree_util.tree_flatten_with_path(params)[0]}
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    layouts = dict(zip(shapes, jax.tree.leaves(specs, is_leaf=is_spec), strict=True))

    def spec(leaf: StateLeaf) -> P:
        owner = owning_parameter(leaf.parts[0][0], shapes)
        if owner is None:
            return P()
        shape, own, layout = leaf.value.shape, shapes[owner].shape, layouts[owner]
        if not leaf.is_factor and len(shape) == len(own):
            # Sparse momenta have fewer columns; an axis of another size stays whole.
            same = zip(layout, shape, own, strict=False)
            return P(*(axis if n == size else None for axis, n, size in same))
        way = spread.get(owner) if distribute is None else distribute
        place = getattr(way, "factor_spec", None)
        stacked = len(shape) > 2 and shape[0] == own[0]
        if leaf.bucket is not None:  # Cut by its matrices, or not at all.
            return P() if place is None else place(shape[:1], True)
        if place is None:
            return P(*layout[:1]) if stacked else P()
        return place(shape, stacked)

    state, said = make_abstract_state(tx, params)
    spread = said.get("distribute", {})
    return jax.tree.unflatten(
        jax.tree.structure(state),
        list(map(spec, state_leaves(state))),
    )


def init_state(
    tx: optax.GradientTransformation,
    params: Any,
    *,
    distribute: Any = None,
    memory_kind: str | None = None,
) -> Any:
    """An optimizer's state, sharded from the start as its sharded parameters are.

    Plain `jax.jit(tx.init)` would put all of it on one device.

    Args:
      tx: any optax transformation.
      params: tree of arrays with a `NamedSharding` each.
      distribute: to put in the place of what `tx` was made with.
      memory_kind: where it rests, see `state_shardings`.

    Returns:
      `tx.init(params)`, laid out by `state_specs`.

    Raises:
      ValueError: the devices have no such memory, or `tx` is no transform.
    """
    layouts = state_shardings(tx, params, distribute, memory_kind)
    start = make_abstract_state(tx, params)[1].get("start", {})
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if check := start.get(tuple(path)):  # What cannot be asked under jit.
            check(path, leaf)
    return jax.jit(tx.init, out_shardings=layouts)(params)


def state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    distribute: Any = None,
    memory_kind: str | None = None,
) -> Any:
    """`state_specs` as shardings on the mesh that the parameters lie on.

    Args:
      tx: any optax transformation.
      params: tree of arrays with a `NamedSharding` each.
      distribute: to put in the place of what `tx` was made with.
      memory_kind: of the state's arrays; its plain numbers stay on the devices.
        `"pinned_host"` is the hosts' memory, for a `tx` made by `offloaded`. None: the
        devices' own.

    Returns:
      The tree of `NamedSharding` like the state.

    Raises:
      ValueError: the devices have no such memory, or `tx` is no transform.
    """
    checks.transform(tx=tx)
    specs = jax.tree.map(lambda p: p.sharding.spec, params)
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    layouts = to_shardings(mesh, state_specs(tx, params, specs, distribute=distribute))
    if memory_kind is None:
        return layouts
    kinds = [m.kind for m in mesh.local_mesh.devices.flat[0].addressable_memories()]
    if memory_kind not in kinds:
        raise ValueError(
            f"memory_kind: the devices have no {memory_kind!r}, but {', '.join(kinds)}"
        )
    return jax.tree.map(
        lambda layout, x: layout.with_memory_kind(memory_kind) if x.ndim else layout,
        *(layouts, jax.eval_shape(tx.init, params)),
    )


def offloaded(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`tx` with a state that rests in the hosts' memory between steps.

    Each step brings the state to the devices and takes it back. Pin both sides of the
    step to `state_shardings(..., memory_kind="pinned_host")`; the state has the
    structure of `tx`'s own. Not every backend can do this: `state_shardings` says so.

    Args:
      tx: any optax transformation, outermost.

    Returns:
      The transformation.

    Raises:
      ValueError: `tx` is no transform.
    """
    checks.transform(tx=tx)
    tx = optax.with_extra_args_support(tx)

    def update_fn(updates, state, params=None, **extra):
        near = _moved(state, jax.memory.Space.Device)
        updates, near = tx.update(updates, near, params, **extra)
        return updates, _moved(near, jax.memory.Space.Host)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)


def _moved(state: Any, space: Any) -> Any:
    """The state's arrays in that memory; plain numbers stay."""
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, state)


def to_shardings(mesh: Mesh, specs: Any) -> Any:
    """A tree of specs as a tree of shardings."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, P),
    )
