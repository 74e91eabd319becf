"""Where a run's arrays lie: its mesh, and how state and batches are cut over it."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.data.order import Process
from experiments.trainer.state import TrainState
from optlab import sharding
from optlab.matrices.buckets import Distribute
from optlab.sharding.distribution import mesh_size


class Layout:
    """The mesh of `config.mesh`: `slice` by `data` by `model` devices.

    Batches are split over `slice` and `data`. With `mesh.mode=jit` parameters and
    momenta are split over `data` (FSDP) and by Megatron's rules over `model`, matrix
    work is spread over both, and only gradients cross slices. With `mesh.mode=pmap`
    every device holds all of the state.

    Attributes:
      mesh: axes of one device are left out, save `data`.
      distribute: what the matrix methods take, None on one device.
      axis: the name that `pmap` gives to its devices, None under `jit`.
      process: which rows of a batch this process reads.

    Raises:
      ValueError: too few devices, some left out where there are many processes, or a
        microbatch that does not split.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        sizes = dict(config.mesh)
        mode = sizes.pop("mode")
        if mode == "pmap":
            for name in ("slice", "model"):
                if sizes[name] > 1:
                    raise ValueError(
                        f"mesh.{name}: given {sizes[name]}, allowed 1 with "
                        "mesh.mode=pmap"
                    )
        devices = jax.devices()
        others = sizes["slice"] * sizes["model"]
        if sizes["data"] == -1:
            sizes["data"] = len(devices) // others
        count = sizes["data"] * others
        if not 1 <= count <= len(devices):
            raise ValueError(
                f"mesh.data: given {config.mesh.data}, with mesh.slice="
                f"{sizes['slice']} and mesh.model={sizes['model']}, of {len(devices)} "
                "devices"
            )
        if jax.process_count() > 1 and count < len(devices):
            raise ValueError(
                f"mesh.data: the mesh has {count} of the {len(devices)} devices of "
                f"{jax.process_count()} processes; mesh.data=-1 takes all"
            )
        self._shards = sizes["slice"] * sizes["data"]
        self._batch_size = config.train.batch_size
        rows = self._batch_size // config.train.accumulate
        if rows % self._shards:
            raise ValueError(
                f"train.batch_size: microbatches of {rows} rows do not split over "
                f"{self._shards} devices (mesh.slice x mesh.data)"
            )
        axes = {
            name: sizes[name]
            for name in ("slice", "data", "model")
            if name == "data" or sizes[name] > 1
        }
        self.axis = "data" if mode == "pmap" else None
        self.mesh = sharding.make_mesh(axes, devices[:count])
        self._batch_axes = tuple(axis for axis in axes if axis != "model")
        within = tuple(axis for axis in axes if axis != "slice")
        self.distribute: Distribute | None = None
        if self.axis and count > 1:
            self.distribute = sharding.over_axis(self.axis)
        elif mesh_size(self.mesh, within) > 1:
            self.distribute = sharding.over_mesh(self.mesh, within)
        if self.axis:
            self._rules = ((".*", PartitionSpec()),)
        elif "model" in axes:
            self._rules = sharding.tensor_parallel_rules(self.mesh, "model", "data")
        else:
            self._rules = sharding.fsdp_rules(self.mesh)
        self.process = self._rows_of_this_process()

    def _rows_of_this_process(self) -> Process:
        """All rows where the share of the process is not in one piece."""
        places = self._batch_places()
        size = self._batch_size
        own = {
            index.indices(size)[:2]
            for (index,) in places.addressable_devices_indices_map((size,)).values()
        }
        low, high = min(start for start, _ in own), max(stop for _, stop in own)
        share = sum(stop - start for start, stop in own)
        if high - low != share or size % share or low % share:
            return Process(0, 1)
        return Process(low // share, size // share)

    def lay_out(self, abstract: TrainState, tx) -> TrainState:
        """The state's shapes with their shardings."""
        specs = sharding.param_specs(abstract.params, self._rules)
        opt_specs = sharding.state_specs(
            tx, abstract.params, specs, distribute=self.distribute
        )
        whole = jax.tree.map(lambda leaf: PartitionSpec(), abstract)
        state = whole._replace(
            params=specs, ema=specs if abstract.ema else (), opt_state=opt_specs
        )
        return jax.tree.map(
            lambda leaf, place: leaf.update(sharding=place),
            abstract,
            sharding.to_shardings(self.mesh, state),
        )

    def init(self, function: Callable, abstract: Any) -> Callable:
        """`function`, which makes such arrays, made to put each in its place."""
        return jax.jit(function, out_shardings=_shardings(abstract))

    def compile_step(self, step: Callable, abstract: TrainState, *arguments: Any):
        """The training step, compiled; it takes the state's memory for the new one."""
        if self.axis:
            mapped = self._mapped(step, donate_argnums=0)
            return mapped.lower(abstract, *arguments).compile()
        laid_out = (_shardings(abstract), None)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=laid_out)
        return jitted.lower(abstract, *arguments).compile()

    def compile(self, function: Callable) -> Callable:
        """A function of the step's arguments that leaves the state as it is."""
        return self._mapped(function) if self.axis else jax.jit(function)

    def trace(self, function: Callable, *arguments: Any) -> Any:
        """The shapes of what a function of the step's arguments gives."""
        mapped = self._mapped(function) if self.axis else function
        return jax.eval_shape(mapped, *arguments)

    def _mapped(self, function: Callable, **options: Any):
        return jax.pmap(
            function,
            axis_name=self.axis,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=list(self.mesh.devices.flat),
            **options,
        )

    def put(self, batch: Any) -> Any:
        """The batch of which this process has its rows, over the mesh."""
        return jax.tree.map(self._put, batch)

    def shapes(self, batch: Any) -> Any:
        """The shapes of what `put` makes of a batch of such rows, however many."""
        places = self._batch_places()

        def shape(rows: np.ndarray) -> jax.ShapeDtypeStruct:
            dtype = jax.dtypes.canonicalize_dtype(rows.dtype)  # of labels, int64
            return jax.ShapeDtypeStruct(self._shape(rows), dtype, sharding=places)

        return jax.tree.map(shape, batch)

    def _batch_places(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(self._batch_axes))

    def _shape(self, rows: np.ndarray) -> tuple[int, ...]:
        if self.axis:  # a leading axis of one entry per device
            each = self._batch_size // self._shards
            return (self._shards, each, *rows.shape[1:])
        return (self._batch_size, *rows.shape[1:])

    def _put(self, rows: np.ndarray) -> jax.Array:
        shape = self._shape(rows)
        if self.axis:
            rows = rows.reshape(-1, *shape[1:])
        return jax.make_array_from_process_local_data(self._batch_places(), rows, shape)

    def put_whole(self, batch: Any) -> Any:
        """A batch that every process has whole, split where the mesh divides it."""
        return jax.tree.map(self._put_whole, batch)

    def _put_whole(self, rows: np.ndarray) -> jax.Array:
        even = rows.shape[0] % self._shards == 0
        spec = PartitionSpec(self._batch_axes) if even else PartitionSpec()
        return jax.make_array_from_callback(
            rows.shape, NamedSharding(self.mesh, spec), lambda index: rows[index]
        )


def _shardings(abstract: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
