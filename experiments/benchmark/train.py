"""Whole training steps of the runner beside AdamW's: the optimizer's share of them.

The step is the one that `experiments.train` compiles for `configs/c4_llama.py`, on
tokens drawn at random; the optimizer's part of it is timed apart as well. On a GPU, the
papers' half a million tokens a step in bfloat16:

    for model in 60M 130M 350M 1B; do
      python -m experiments.benchmark --suite=train --model=$model --runs=3 \\
        --optimizers=optax_muon,muon,root,cosmos,lanton,scion \\
        --out=results/benchmarks/$model
    done
"""

import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from absl import flags

import optlab
from experiments import config as configs
from experiments.benchmark import scaling, step, table, timing
from experiments.flops import count_flops
from experiments.trainer import memory
from experiments.trainer.program import Program
from experiments.trainer.state import tree_bytes

FLAGS = flags.FlagValues()
_BATCH = flags.DEFINE_integer(
    "batch", None, "train: windows in a step; 8 on a CPU, else 2048", flag_values=FLAGS
)
_CONTEXT = flags.DEFINE_integer(
    "context",
    None,
    "train: tokens in a window; 64 on a CPU, else 256",
    flag_values=FLAGS,
)
_ACCUMULATE = flags.DEFINE_integer(
    "accumulate",
    None,
    "train: microbatches of a step; 1 on a CPU, else 32",
    flag_values=FLAGS,
)
_VOCABULARY = flags.DEFINE_integer(
    "vocabulary", 32_000, "train: tokens that there are", flag_values=FLAGS
)

_CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "c4_llama.py"
_SETTINGS = ["--config.task.eval_windows=32"]
_REFERENCE = "adamw"
# Where a flag is not given: model, batch, context, accumulate.
_ON_CPU = ("20M", 8, 64, 1)
_ELSEWHERE = ("350M", 2048, 256, 32)

COLUMNS = (
    "optimizer",
    "compile, s",
    "step, ms",
    "/ adamw",
    "tokens/s",
    "update alone, ms",
    "share of the step",
    "GFLOPs",
    "share of the update",
    "state, MB",
    "memory, MB",
)


class Trained:
    """One optimizer's training step, compiled, with a state to run it on."""

    def __init__(self, name: str, overrides: list[str]):
        config, _ = configs.load(
            str(_CONFIG), [*overrides, f"--config.optimizer.name={name}"]
        )
        if "ns_dtype" in config.optimizer.kwargs:
            # What the products of a mixed-precision run are made in.
            config.optimizer.kwargs.ns_dtype = config.model.dtype
        self.program = program = Program(config)
        kwargs = dict(config.optimizer.kwargs)
        self._needs = optlab.registry.get(name).needs_for(kwargs)
        rows = program.task.train_iterator(0)
        batches = [next(rows) for _ in range(program.batches_per_step)]
        self._arguments = program.layout.put(tuple(batches)), program.peaks
        start = time.perf_counter()
        self._step = program.layout.compile_step(
            *(program.step, program.abstract, *self._arguments)
        )
        self.compile_seconds = time.perf_counter() - start
        self._alone = jax.jit(self.update)
        self._state = program.first_state()
        # Past the steps on which bases are made.
        jax.block_until_ready([self.train() for _ in range(2)])
        jax.block_until_ready(self.update_alone())

    def train(self) -> jax.Array:
        """Makes a step; the loss."""
        self._state, metrics = self._step(self._state, *self._arguments)
        return metrics["loss"]

    def update(self, grads, opt_state, params):
        """What is the optimizer's in a step."""
        extra = dict.fromkeys(self._needs, grads)
        updates, new = self.program.tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), new

    def update_alone(self):
        """The update, with the parameters for gradients; the state stays as it is."""
        params = self._state.params
        return self._alone(params, self._state.opt_state, params)

    def flops(self) -> tuple[int, int]:
        """FLOPs of a step that makes no new basis, and of its update."""
        state = self.program.abstract
        arguments = state, *self._arguments
        # The cheapest step is the one that is skipped: all but the update.
        rest = count_flops(self.program.step, *arguments, cheapest_branch=True)
        arguments = state.params, state.opt_state, state.params
        update = count_flops(self.update, *arguments, cheapest_branch=True)
        return rest.total + update.total, update.total

    def bytes(self) -> tuple[int, int]:
        """Bytes of the optimizer's state, and of all that a step holds."""
        held = tree_bytes(self.program.abstract.opt_state.inner_state)
        return held, memory.planned(self._step.memory_analysis())


def _write_tokens(folder: pathlib.Path, count: int, vocabulary: int) -> None:
    tokens = np.random.default_rng(0).integers(0, vocabulary, count, np.uint16)
    for split in ("train", "val"):
        tokens.tofile(folder / f"{split}.bin")


def _given() -> tuple:
    defaults = _ON_CPU if jax.default_backend() == "cpu" else _ELSEWHERE
    chosen = (step.MODEL, _BATCH, _CONTEXT, _ACCUMULATE)
    return tuple(
        default if flag.value is None else flag.value
        for flag, default in zip(chosen, defaults, strict=True)
    )


def _names() -> list[str]:
    """The reference first, then the others that are asked for."""
    return [_REFERENCE, *(name for name in scaling.asked() if name != _REFERENCE)]


def run(out: pathlib.Path) -> int:
    """Writes train.csv, train.md and train.png into `out`."""
    model, batch, context, accumulate = _given()
    dtype = step.dtype()
    overrides = [
        f"--config.model.size={model}",
        f"--config.model.dtype={dtype}",
        f"--config.train.batch_size={batch}",
        f"--config.train.accumulate={accumulate}",
        f"--config.task.context={context}",
        f"--config.task.vocab_size={_VOCABULARY.value}",
        *_SETTINGS,
    ]
    with tempfile.TemporaryDirectory() as folder:
        count = 2 * max(batch, 32) * (context + 1)
        _write_tokens(pathlib.Path(folder), count, _VOCABULARY.value)
        overrides.append(f"--config.task.path={folder}")
        trained = {name: Trained(name, overrides) for name in _names()}
    calls: dict[str, Callable] = {}
    for name, one in trained.items():
        calls |= {name: one.train, f"{name}'s update": one.update_alone}
    times = timing.interleaved(calls, step.RUNS.value)
    rows = [_row(name, one, times) for name, one in trained.items()]
    command = (
        f"python -m experiments.benchmark --suite=train --model={model} "
        f"--batch={batch} --context={context} --accumulate={accumulate} "
        f"--dtype={dtype} --vocabulary={_VOCABULARY.value} --runs={step.RUNS.value} "
        f"--optimizers={','.join(scaling.OPTIMIZERS.value)}"
    )
    heading = (
        f"Made by `{command}` on {timing.machine()}.\n"
        f"{batch * context} tokens a step; weights and state are float32. The shares "
        "are the optimizer's: of the\ntime by its update alone, and of the FLOPs; "
        "medians of steps in turns that make no new basis."
    )
    table.write(out / "train", heading, COLUMNS, rows)
    base = trained[_REFERENCE]
    timing.bars(
        out / "train.png",
        list(trained),
        {
            "step time": [times[k] / times[_REFERENCE] for k in trained],
            "update alone": [
                times[f"{k}'s update"] / times[f"{_REFERENCE}'s update"]
                for k in trained
            ],
            "optimizer state": [
                one.bytes()[0] / base.bytes()[0] for one in trained.values()
            ],
            "memory of the step": [
                one.bytes()[1] / base.bytes()[1] for one in trained.values()
            ],
        },
        "AdamW",
    )
    return 0


def _row(name: str, one: Trained, times: dict[str, float]) -> tuple[str, ...]:
    seconds, update = times[name], times[f"{name}'s update"]
    flops, own_flops = one.flops()
    state, held = one.bytes()
    return (
        name,
        f"{one.compile_seconds:.1f}",
        f"{1e3 * seconds:.0f}",
        f"{seconds / times[_REFERENCE]:.3f}",
        f"{one.program.tokens_per_step / seconds:.0f}",
        f"{1e3 * update:.1f}",
        f"{update / seconds:.1%}",
        f"{flops / 1e9:.0f}",
        f"{own_flops / flops:.2%}",
        f"{state / 1e6:.1f}",
        f"{held / 1e6:.1f}",
    )
