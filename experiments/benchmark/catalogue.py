"""What every optimizer keeps and computes, at the shapes of a LLaMA-130M; nothing runs.

The numbers follow from shapes alone, so they are the same on every machine.
"""

import functools
import math
import pathlib

import jax

import optlab
from experiments import config as configs
from experiments.benchmark import table
from experiments.flops import count_flops
from experiments.models.llama import SIZES, Llama
from experiments.models.transformer import Size

# The paper of COSMOS trains with half a million tokens a step.
_TOKENS = 2**19
_VOCABULARY = 32_000
COLUMNS = (
    "optimizer",
    "state bytes per parameter",
    "GFLOPs a step",
    "share of a step of 0.5 M tokens",
    "most expensive step, GFLOPs",
)


def sized(model: str) -> Size:
    """The size that `350M` names, or `350M:48` for one with that many layers."""
    name, _, layers = model.partition(":")
    size = SIZES[name]
    return size._replace(layers=int(layers)) if layers else size


@functools.cache
def llama_shapes(name: str = "130M"):
    """The parameters of a LLaMA, as `jax.ShapeDtypeStruct`; its layers are stacked."""
    config = configs.base().model
    config.update(sized(name)._asdict())
    model = Llama(config, _VOCABULARY, context=1024)
    return jax.eval_shape(model.init, jax.random.key(0))


ROLES = optlab.default_roles(stacked=Llama.stacked)


def optimizer(name: str, **kwargs):
    """An entry of the registry with the roles of the shapes above."""
    offered = {"roles": ROLES, "weight_decay": 0.1} | kwargs
    return optlab.registry.get(name).build(1e-3, **offered)


def row(name: str, params) -> tuple:
    """One optimizer's line of the table."""
    tx = optimizer(name)
    state = jax.eval_shape(tx.init, params)
    needs = optlab.registry.get(name).needs
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    def update(grads, state, params):
        return tx.update(grads, state, params, **dict.fromkeys(needs, grads))

    steady, most = (
        count_flops(update, params, state, params, cheapest_branch=cheapest).total
        for cheapest in (True, False)
    )
    training = 6 * count * _TOKENS
    return (
        name,
        f"{held / count:.2f}",
        f"{steady / 1e9:.0f}" if steady > 1e10 else f"{steady / 1e9:.1f}",
        f"{steady / training:.2%}",
        f"{most / 1e9:.0f}" if most > 1e10 else f"{most / 1e9:.1f}",
    )


def run(out: pathlib.Path) -> int:
    """Writes catalogue.csv and catalogue.md into `out`, and prints the table."""
    params = llama_shapes()
    rows = [row(name, params) for name in optlab.registry.names()]
    heading = (
        "Made by `python -m experiments.benchmark --suite=catalogue`: LLaMA-130M, "
        "float32,\ncounted from the traced program; the second figure of FLOPs is a "
        "step on which bases\nare made or refreshed."
    )
    table.write(out / "catalogue", heading, COLUMNS, rows)
    return 0
