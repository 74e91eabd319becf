"""An optimizer's step beside AdamW's and optax's Muon's: compiling, time, memory.

The parameters are the blocks of a LLaMA, seven matrices and two norms a layer, without
the embeddings: separate leaves, or with `--stacked` stacks over the layers.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import optlab
from experiments.benchmark import scaling, table, timing
from experiments.benchmark.catalogue import llama_shapes, optimizer
from experiments.flops import count_flops
from experiments.models.llama import SIZES

FLAGS = flags.FlagValues()
MODEL = flags.DEFINE_enum(
    "model",
    None,
    [*SIZES],
    "step, memory: shapes, 130M by default; train: 20M on a CPU, else 350M",
    flag_values=FLAGS,
)
_LAYERS = flags.DEFINE_integer(
    "layers", 1, "step: layers of the steps that are timed", flag_values=FLAGS
)
_COMPILED_LAYERS = flags.DEFINE_integer(
    "compiled_layers",
    12,
    "step: layers of the programs whose compilation is timed",
    flag_values=FLAGS,
)
_STACKED = flags.DEFINE_bool(
    "stacked",
    False,
    "step: the matrices of all layers as one stack; writes step_stacked.*",
    flag_values=FLAGS,
)
RUNS = flags.DEFINE_integer(
    "runs", 5, "step, train: in turns, of which the median counts", flag_values=FLAGS
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "step, train: of Newton-Schulz products, and in train of activations; float32 on a "
    "CPU, else bfloat16",
    flag_values=FLAGS,
)

_REFERENCE = "optax_muon"
_MAIN = "optax_muon_main"
COLUMNS = (
    "optimizer",
    "compile, s",
    f"/ {_REFERENCE}",
    "its CPU, s",
    f"/ {_REFERENCE}",
    f"/ {_MAIN}",
    "step, ms",
    "/ adamw",
    f"/ {_REFERENCE}",
    f"/ {_MAIN}",
    "GFLOPs",
    f"/ {_REFERENCE}",
    "roofline share",
    "state, MB",
    "temporary, MB",
    f"/ {_REFERENCE}",
    f"/ {_MAIN}",
)


def blocks(name: str, layers: int):
    """The blocks of a LLaMA as separate matrices and vectors."""
    layer = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        llama_shapes(name)["layers"],
    )
    return [layer for _ in range(layers)]


def stacks(name: str, layers: int):
    """The blocks of a LLaMA as stacks, `(layers, ...)` each."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((layers, *x.shape[1:]), x.dtype),
        llama_shapes(name)["layers"],
    )


class Step:
    """One optimizer's update, as a function of gradients, state and parameters."""

    def __init__(self, tx, needs: tuple[str, ...] = ()):
        self._tx = tx
        self._needs = needs

    @classmethod
    def of(cls, name: str, **kwargs) -> "Step":
        """An entry of the registry."""
        stacked = "." if _STACKED.value else ()
        tx = optimizer(name, roles=optlab.default_roles(stacked=stacked), **kwargs)
        return cls(tx, optlab.registry.get(name).needs_for(kwargs))

    def __call__(self, grads, state, params):
        """The updates and the new state."""
        extra = dict.fromkeys(self._needs, grads)
        return self._tx.update(grads, state, params, **extra)

    def arguments(self, params):
        """Shapes of the arguments."""
        return params, jax.eval_shape(self._tx.init, params), params

    def bound(self, params):
        """The compiled step on random gradients, its state past the first step."""
        rng = np.random.default_rng(0)
        values = jax.tree.map(
            lambda p: jnp.asarray(rng.standard_normal(p.shape, np.float32)), params
        )
        step = jax.jit(self)
        _, state = step(values, self._tx.init(values), values)
        return lambda: step(values, state, values)


def _given_diagonal() -> optax.GradientTransformationExtraArgs:
    """What makes the Hessian diagonal for Sophia: the training step, as here."""

    def update(updates, state, params=None, *, hessian_diag, **extra):
        del updates, params, extra
        return hessian_diag, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def dtype() -> str:
    """What products are made in: what the flag says, or what the backend likes."""
    return DTYPE.value or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def every_step(**kwargs) -> dict[str, Step]:
    """The registry's entries, some of their other settings, and optax's Sophia.

    Each entry gets those of the arguments that it has.
    """
    steps = {name: Step.of(name, **kwargs) for name in optlab.registry.names()}
    steps["root, ns_steps=4"] = Step.of("root", ns_steps=4, **kwargs)
    lanczos = dict(kwargs, dual_norm="lanczos")
    steps["lanton, dual_norm=lanczos"] = Step.of("lanton", **lanczos)
    if _STACKED.value:
        for name in ("muon", "root", "cosmos"):
            steps[f"{name}, in one chunk"] = Step.of(name, chunk_bytes=2**62, **kwargs)
    sophia = optax.contrib.sophia(1e-3, hessian_diagonal_fn=_given_diagonal())
    return steps | {"sophia": Step(sophia, ("hessian_diag",))}


def chosen(steps: dict[str, Step]) -> dict[str, Step]:
    """Those that `--optimizers` names, with their settings, and the references."""
    kept = {"adamw", _REFERENCE, _MAIN, *scaling.asked("sophia")}
    return {k: step for k, step in steps.items() if k.split(",")[0] in kept}


def compiled(steps: dict[str, Step], params, runs: int):
    """Median seconds to compile, of the wall and of the CPU, and temporary bytes."""
    seconds, memory = {name: [] for name in steps}, {}
    for _ in range(runs):
        for name, step in steps.items():
            jax.clear_caches()
            start = np.array([time.perf_counter(), time.process_time()])
            program = jax.jit(step).lower(*step.arguments(params)).compile()
            end = np.array([time.perf_counter(), time.process_time()])
            seconds[name].append(end - start)
            analysis = program.memory_analysis()
            memory[name] = analysis.temp_size_in_bytes if analysis else float("nan")
    return {name: np.median(s, 0) for name, s in seconds.items()}, memory


def run(out: pathlib.Path) -> int:
    """Writes step.csv, step.md and step.png into `out`, or step_stacked.*."""
    model = MODEL.value or "130M"
    parameters = stacks if _STACKED.value else blocks
    steps = chosen(every_step(ns_dtype=dtype()))
    large = parameters(model, _COMPILED_LAYERS.value)
    compiling, memory = compiled(steps, large, min(RUNS.value, 3))
    small = parameters(model, _LAYERS.value)
    functions = {name: step.bound(small) for name, step in steps.items()}
    products = timing.products(dtype())
    times = timing.interleaved(functions | products, RUNS.value, best=products)
    rate = timing.roofline(times)
    counts, rows = {}, []
    for name, step in steps.items():
        arguments = step.arguments(small)
        counts[name] = count_flops(step, *arguments, cheapest_branch=True).total
    for name, step in steps.items():
        state = jax.tree.leaves(step.arguments(large)[1])
        held = sum(x.size * x.dtype.itemsize for x in state)
        rows.append(
            (
                name,
                f"{compiling[name][0]:.2f}",
                f"{compiling[name][0] / compiling[_REFERENCE][0]:.2f}",
                f"{compiling[name][1]:.2f}",
                f"{compiling[name][1] / compiling[_REFERENCE][1]:.2f}",
                f"{compiling[name][1] / compiling[_MAIN][1]:.2f}",
                f"{1e3 * times[name]:.0f}",
                f"{times[name] / times['adamw']:.1f}",
                f"{times[name] / times[_REFERENCE]:.2f}",
                f"{times[name] / times[_MAIN]:.2f}",
                f"{counts[name] / 1e9:.1f}",
                f"{counts[name] / counts[_REFERENCE]:.2f}",
                f"{counts[name] / times[name] / rate:.2f}",
                f"{held / 1e6:.0f}",
                f"{memory[name] / 1e6:.0f}",
                f"{memory[name] / memory[_REFERENCE]:.2f}",
                f"{memory[name] / memory[_MAIN]:.2f}",
            )
        )
    command = (
        f"python -m experiments.benchmark --suite=step --model={model} "
        f"--layers={_LAYERS.value} --compiled_layers={_COMPILED_LAYERS.value} "
        f"--runs={RUNS.value} --dtype={dtype()}"
    )
    if _STACKED.value:
        command += " --stacked"
    if scaling.OPTIMIZERS.value != ["all"]:
        command += f" --optimizers={','.join(scaling.OPTIMIZERS.value)}"
    kind = (
        "the layers of a matrix one stack" if _STACKED.value else "every matrix a leaf"
    )
    heading = (
        f"Made by `{command}` on {timing.machine()}.\n"
        f"float32, with {dtype()} in our Newton-Schulz products; `adamw`, `lion`, "
        "`optax_muon` and `sophia` are\noptax's as released, `optax_muon_main` is "
        "that of its main branch, and `adahessian` and `sophia` are given\ntheir "
        "Hessian diagonal. Time, FLOPs and share of the roofline\n"
        f"({rate / 1e9:.0f} GFLOP/s, the fastest plain product in {dtype()}, in the "
        f"same turns)\nare of {_LAYERS.value} layer(s), on a step that makes no new "
        "basis; compiling, "
        f"state and temporary memory of {_COMPILED_LAYERS.value}, {kind}."
    )
    name = "step_stacked" if _STACKED.value else "step"
    table.write(out / name, heading, COLUMNS, rows)
    timing.bars(
        out / f"{name}.png",
        list(steps),
        {
            "compile time": [compiling[k][0] / compiling[_MAIN][0] for k in steps],
            "step time": [times[k] / times[_MAIN] for k in steps],
            "FLOPs": [counts[k] / counts[_MAIN] for k in steps],
            "temporary memory": [memory[k] / memory[_MAIN] for k in steps],
        },
        "the Muon of optax's main branch",
    )
    return 0
