"""Lines of the study's table that nobody trained."""

import hashlib

from experiments.study import search
from experiments.study.results import Tried
from experiments.study.table import Row


def row(fields, seed, loss=2.0, curve=None, config="configs/stdlib_lm.py", **own):
    """A line; `own` replaces what it has by itself."""
    found = Row(
        digest="",
        config=config,
        overrides=dict(fields),
        seed=seed,
        reason="diverged" if loss is None else "completed",
        initial_loss=5.5,
        val_loss=loss,
        best_val_loss=loss,
        val_accuracy=own.pop("accuracy", None),
        train_loss=loss,
        steps=400,
        tokens=400 * 1024,
        curve={200: 3.0, 400: loss or 0.0} if curve is None else curve,
        layer_spread={20: 0.25, 40: 0.3},
        seconds=20.0,
        step_seconds=0.05,
        start_seconds=5.0,
        total_seconds=30.0,
        state_bytes=1000 + len(str(fields)),
        peak_memory_bytes=5000,
        flops=10**9 + len(str(fields)),
        data="2c54c5d2bbc2",
        versions="python 3.11.7, jax 0.10.2, commit 0123456789ab",
    )
    digest = hashlib.sha256(found.key.encode()).hexdigest()[:12]
    return found._replace(digest=digest, **own)


def rows_of(trials, loss):
    """All runs that the arms want, where `loss(values, seed)` is their loss."""
    rows = []
    for name, arm in trials.items():
        if arm.refines:
            continue
        tried = Tried(name, arm, {})
        while missing := search.wanted(arm.search, tried.losses):
            for values, seed in missing:
                found = loss(values, seed)
                fields = tried.point(values)
                rows.append(row(fields, seed, found, config=arm.config))
                tried.rows[values, seed] = rows[-1]
    return rows
