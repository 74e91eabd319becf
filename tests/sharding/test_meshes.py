"""Meshes, rules for layouts, and the mistakes in them that are named."""

import dataclasses
import itertools

import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optlab import sharding
from tests.helpers.sharded import SHAPES, shapes_of


def test_a_mesh_takes_the_remaining_devices():
    mesh = sharding.make_mesh({"data": -1, "model": 2})
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "axes", [{"data": 3}, {"data": -1, "model": 3}, {"data": -1, "model": -1}, {"a": 0}]
)
def test_a_mesh_that_does_not_fit_is_an_error(axes):
    with pytest.raises(ValueError, match="8 devices"):
        sharding.make_mesh(axes)


def test_slices_are_as_far_apart_as_they_can_be():
    mesh = sharding.make_mesh({"data": 4, "slice": 2})
    ids = np.vectorize(lambda d: d.id)(mesh.devices)
    np.testing.assert_array_equal(ids, [[0, 4], [1, 5], [2, 6], [3, 7]])


@dataclasses.dataclass(frozen=True)
class Device:
    """What jax's mesh helpers ask a device."""

    id: int
    process_index: int
    slice_index: int | None
    platform: str = "gpu"
    device_kind: str = "none that jax knows"


def pod(slices, processes, devices, numbered=True):
    """So many each in the one before, in an order that is no help."""
    places = itertools.product(range(slices), range(processes), range(devices))
    found = [
        Device(i, s * processes + p, s if numbered else None)
        for i, (s, p, _) in enumerate(places)
    ]
    return found[::2] + found[1::2]


@pytest.mark.parametrize(
    ("devices", "slices", "unit"),
    [
        (pod(2, 2, 4), 2, "slice_index"),
        (pod(2, 2, 4), 4, "process_index"),
        (pod(1, 4, 4), 4, "process_index"),
        (pod(1, 4, 4, numbered=False), 4, "process_index"),
        # As many as neither: whole ones in a slice, or slices whole in one.
        (pod(4, 2, 2), 2, "slice_index"),
        (pod(1, 4, 4, numbered=False), 2, "process_index"),
        (pod(2, 1, 8), 8, "slice_index"),
        (pod(1, 2, 8), 8, "process_index"),
    ],
)
def test_a_slice_of_the_mesh_keeps_hosts_and_pods_together(devices, slices, unit):
    def of(found):
        return {getattr(d, unit) for d in np.ravel(np.array(found))}

    size = len(devices) // slices
    for axes in ({"slice": slices, "data": size}, {"data": size, "slice": slices}):
        mesh = sharding.make_mesh(axes, devices)
        assert set(np.ravel(mesh.devices)) == set(devices)
        parts = np.moveaxis(mesh.devices, list(axes).index("slice"), 0)
        held = [of(part) for part in parts]
        units = len(of(devices))
        assert all(len(x) == max(1, units // slices) for x in held)
        # Equal parts that are apart wherever they can be.
        assert len(set().union(*held)) == units
        assert sum(map(len, held)) == max(units, slices)


def test_slices_that_would_mix_hosts_are_refused():
    with pytest.raises(ValueError, match=r"2 slices .* 3 values of process_index"):
        sharding.make_mesh({"slice": 2, "data": 9}, pod(1, 3, 6))


def test_a_parameter_without_a_rule_is_named():
    params = shapes_of(SHAPES)
    rules = (("layers/", P(None, "data")), ("odds", P()))
    with pytest.raises(ValueError, match="none matches 'embed'"):
        sharding.param_specs(params, rules)
    with pytest.raises(ValueError, match="'odd/kernel'; the nearest is odds"):
        sharding.param_specs({"odd": params["odd"]}, rules)


def test_a_layout_with_too_many_axes_is_named():
    rules = ((".*", P(None, None, "data")),)
    with pytest.raises(ValueError, match="'embed' of shape"):
        sharding.param_specs(shapes_of(SHAPES), rules)


def test_the_first_rule_decides():
    params = shapes_of(SHAPES)
    rules = (("up", P(None, None, "data")), ("layers", P("data")), (".*", P()))
    specs = sharding.param_specs(params, rules)
    assert specs["layers"]["up"]["kernel"] == P(None, None, "data")
    assert specs["layers"]["bias"] == P("data")
    assert specs["embed"] == P()


def test_ready_rules():
    params = shapes_of(SHAPES)
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    specs = sharding.param_specs(params, sharding.fsdp_rules(mesh))
    assert specs["layers"]["up"]["kernel"] == P(None, "data", None)
    assert specs["odd"]["kernel"] == P(None, "data", None)
    rules = sharding.tensor_parallel_rules(mesh, "model", "data")
    specs = sharding.param_specs(params, rules)
    assert specs["layers"]["up"]["kernel"] == P(None, "data", "model")
    assert specs["embed"] == P("model", "data")


def test_an_unknown_axis_is_named():
    mesh = sharding.make_mesh({"data": 8})
    for make_one in (sharding.over_mesh, sharding.fsdp_rules):
        with pytest.raises(ValueError, match="no axis 'model'"):
            make_one(mesh, "model")
