"""Factors in a checkpoint, which another number of devices keeps by other buckets.

A checkpoint has a bucket's array in the place of its first member, and nothing in those
of the others; which those are stands beside it. So the names of its arrays are those of
a state that is kept by leaf.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optlab.state import Bucket, Path, by_leaf, fill, is_stacks, restack, state_leaves

# Path of the first member -> slices, stack axes and paths of all members.
Buckets = Mapping[str, Any]


def buckets_of(state: Any) -> Buckets:
    """What the checkpoint of a state has in buckets, for JSON."""
    return {
        _name(leaf.parts[0][0]): {
            "slices": leaf.bucket.slices,
            "stack": list(leaf.bucket.stack),
            "members": [_name(path) for path, _ in leaf.parts],
        }
        for leaf in state_leaves(state)
        if leaf.bucket is not None
    }


def packed(state: Any) -> Any:
    """The tree that is saved of a state."""

    def pack(x: Any) -> Any:
        if not is_stacks(x):
            return x
        first = [bucket.members[0] for bucket in x.plan]
        return fill(x.leaves, dict(zip(first, x.buckets, strict=True)))

    return jax.tree.map(pack, state, is_leaf=is_stacks)


def as_saved(abstract: Any, buckets: Buckets) -> Any:
    """The tree that was saved with those buckets, to be read here.

    Args:
      abstract: shapes, dtypes and shardings of the state that is wanted.
      buckets: what `buckets_of` said of the state that was saved.

    Returns:
      Shapes, dtypes and shardings. What is kept in another way here is cut into as many
      equal parts of its first axis as the devices allow.
    """
    same = dict(_named(packed(abstract)))
    own = buckets_of(abstract)
    anywhere = jax.tree.leaves(abstract)[0].sharding
    others = {x for told in buckets.values() for x in told["members"][1:]}

    def saved(path: Path, leaf: Any) -> Any:
        name = _name(path)
        if name in others:
            return None
        if buckets.get(name) == own.get(name) and name in same:
            return same[name]
        shape = tuple(leaf.shape)
        if told := buckets.get(name):
            shape = (told["slices"], *shape[len(told["stack"]) :])
        return leaf.update(shape=shape, sharding=_even(anywhere, shape))

    return jax.tree_util.tree_map_with_path(saved, jax.eval_shape(by_leaf, abstract))


def restacked(saved: Any, abstract: Any, buckets: Buckets) -> Any:
    """The state that is wanted, from what was saved; equal to the bit.

    Args:
      saved: arrays as `as_saved` says.
      abstract: the state that is wanted.
      buckets: what `buckets_of` said of the state that was saved.
    """
    if buckets == buckets_of(abstract):
        found = dict(_named(saved))
        wanted = state_leaves(abstract)
        arrays = [found[_name(leaf.parts[0][0])] for leaf in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract), arrays)

    def convert(saved: Any) -> Any:
        found = dict(_named(saved))
        for name, told in buckets.items():
            bucket = Bucket(told["members"], tuple(told["stack"]), told["slices"])
            found |= zip(bucket.members, bucket.split(found[name]), strict=True)
        plain = jax.tree_util.tree_map_with_path(
            lambda path, _: found[_name(path)], jax.eval_shape(by_leaf, abstract)
        )
        return restack(plain, abstract)

    layouts = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(convert, out_shardings=layouts)(saved)


def _even(somewhere: Any, shape: tuple[int, ...]) -> Any:
    """A layout on those devices, in equal parts of the first axis."""
    if not isinstance(somewhere, NamedSharding):
        return somewhere
    devices = somewhere.mesh.devices
    parts = math.gcd(shape[0], devices.size) if shape else 1
    mesh = Mesh(devices.reshape(parts, -1), ("part", "copy"))
    return NamedSharding(mesh, PartitionSpec("part") if shape else PartitionSpec())


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [(_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: Any) -> str:
    """A path in words that no other path has."""
    return jax.tree_util.keystr(path)
