"""LANTON's layer rates under each way to find the nuclear norm, beside the exact ones.

The gradients are those of trainings of `configs/stdlib_lm.py` by LANTON with exact
norms; every other way measures the same gradients.
"""

import pathlib
from functools import partial

import jax
import numpy as np
import optax

import optlab
from experiments import config as configs
from experiments.benchmark import table
from experiments.benchmark.precision import RATES
from experiments.trainer.program import make_program
from optlab.matrices.norms import tree_layers
from optlab.wrappers.noise import layer_ratios

_CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "stdlib_lm.py"
WIDTHS, STEPS = (64, 128, 256), 100
WAYS = ("exact", "newton_schulz", "lanczos", "frobenius")
COLUMNS = (
    "width",
    "dual_norm",
    "median error of a layer's rate",
    "95% of them below",
    "largest",
    "norm over the exact one, least",
    "median",
    "most",
)


def measured(width: int, steps: int) -> tuple[dict[str, list], dict[str, list]]:
    """Rates of the hidden layers and roots of their `H`, `(steps - 1, layers)` each."""
    fields = {
        "model.unroll": True,
        "model.width": width,
        "model.hidden": 11 * width // 4,
        "train.batch_size": 8,
        "train.steps": steps,
        "optimizer.name": "lanton",
        "optimizer.learning_rate": RATES["lanton"],
        "optimizer.kwargs.dual_norm": "exact",
    }
    settings = [f"--config.{field}={value}" for field, value in fields.items()]
    program = make_program(configs.load(str(_CONFIG), settings)[0])
    task = program.task
    state = program.first_state()
    watchers = {
        way: optlab.noise_adaptive(optax.identity(), dual_norm=way, roles=task.roles)
        for way in WAYS
    }
    layers = tree_layers(state.params, task.roles, 1.0)
    hidden = [i for i, layer in enumerate(layers) if layer.group == "matrix"]

    @jax.jit
    def watch(params, batch, states):
        grads = jax.grad(lambda p: task.loss(p, batch, jax.random.key(0))[0])(params)
        found = {}
        for way, tx in watchers.items():
            _, states[way] = tx.update(grads, states[way], params)
            noises = jax.tree.leaves(states[way].noise)
            rates = layer_ratios(noises, layers, 1.0, 0.5)
            found[way] = [[x[i].ravel() for i in hidden] for x in (rates, noises)]
        return states, found

    train = program.layout.compile_step(
        program.step, program.abstract, _batch(program, task.train_iterator(0)),
        program.peaks,
    )  # fmt: skip
    states = {way: tx.init(state.params) for way, tx in watchers.items()}
    rows = task.train_iterator(0)
    rates, roots = {way: [] for way in WAYS}, {way: [] for way in WAYS}
    for step in range(steps):
        batch = _batch(program, rows)
        states, found = watch(state.params, batch[0], states)
        state, _ = train(state, batch, program.peaks)
        for way, (rate, noise) in jax.device_get(found).items() if step else ():
            rates[way].append(np.concatenate(rate))
            roots[way].append(np.sqrt(np.concatenate(noise)))
    return rates, roots


def _batch(program, rows) -> tuple:
    return program.layout.put((next(rows),))


def row(width: int, way: str, rates: dict, roots: dict) -> tuple[str, ...]:
    """A line of the table."""
    errors = np.abs(np.array(rates[way]) / np.array(rates["exact"]) - 1)
    norms = np.array(roots[way]) / np.array(roots["exact"])
    return (
        str(width),
        way,
        *(f"{np.quantile(errors, q):.2%}" for q in (0.5, 0.95, 1)),
        *(f"{np.quantile(norms, q):.3f}" for q in (0, 0.5, 1)),
    )


def run(out: pathlib.Path) -> int:
    """Writes dual_norm.csv and dual_norm.md into `out`."""
    rows = []
    for width in WIDTHS:
        rates, roots = measured(width, STEPS)
        rows += map(partial(row, width, rates=rates, roots=roots), WAYS[1:])
    heading = (
        "Made by `python -m experiments.benchmark --suite=dual_norm`: trainings of "
        f"`configs/stdlib_lm.py` by\nLANTON, {STEPS} steps; of every step and hidden "
        "matrix the rate of its layer, `(alpha_t / max alpha_t)^p`,\nand the root of "
        "its `H`, beside those of exact norms of the same gradients."
    )
    table.write(out / "dual_norm", heading, COLUMNS, rows)
    return 0
