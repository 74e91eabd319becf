"""The fields that every config has: defaults, what they mean, what is allowed."""

from collections.abc import Collection
from typing import Any, NamedTuple

from experiments.data import SOURCES
from experiments.models import MODELS
from experiments.schedules import SCHEDULES
from experiments.tasks import TASKS
from experiments.wrappers import WRAPPERS


class Field(NamedTuple):
    """One field: what it starts as (a type: None, to be given that type), and means.

    Choices are those of the moment, where a config file may register its own. One that
    starts as None is set back to it by the word `none`; `~` is expanded in a
    path. `only` is the field that decides whether this one says anything, and the
    values with which it does; none: any but 0 and None.
    """

    default: Any
    help: str
    choices: Collection[str] = ()
    low: float | None = None
    high: float | None = None
    positive: bool = False
    is_path: bool = False
    only: tuple[str, ...] = ()


# More than anyone has; beyond it lie slips of the finger.
_MANY = 2**24

FIELDS = {
    "seed": Field(0, "decides initial weights and data order", low=0, high=2**32 - 1),
    "task.name": Field("language_model", "what is learned", TASKS.keys()),
    "task.data": Field("stdlib", "where tokens or images come from", SOURCES.keys()),
    "task.path": Field(
        str,
        "of shards: their folder; of stream: a Hugging Face data set or a folder of "
        "files; of cifar10: its tarball; of installed_sources: the cache to keep",
        is_path=True,
    ),
    "task.subset": Field(str, "of stream: the data set's configuration, such as en"),
    "task.text_field": Field("text", "of stream: the column to read"),
    "task.tokenizer": Field(
        str, "of stream: a tokenizer.json, bytes if there is none", is_path=True
    ),
    "task.vocab_size": Field(
        int,
        "of installed_sources: tokens of the BPE to train, bytes if not given; "
        "of shards: where no meta.json says it, or to pad the table",
        low=2,
        high=_MANY,
    ),
    "task.context": Field(128, "tokens in a window", low=1, high=_MANY),
    "task.eval_windows": Field(
        256,
        "validation windows, a multiple of 32, the same ones always",
        low=32,
        high=_MANY,
    ),
    "task.augment": Field(False, "crop and mirror training images at random"),
    "model.name": Field("llama", "family", MODELS.keys()),
    "model.size": Field(
        "tiny",
        "; ".join(f"{x}: {', '.join(m.sizes)}" for x, m in MODELS.items() if m.sizes),
    ),
    "model.width": Field(
        int, "width of the residual stream, if not the size's", low=1, high=_MANY
    ),
    "model.layers": Field(
        int, "number of layers, if not the size's", low=1, high=10_000
    ),
    "model.heads": Field(int, "attention heads, if not the size's", low=1, high=_MANY),
    "model.hidden": Field(
        int, "inner width of the MLP, if not the size's", low=1, high=_MANY
    ),
    "model.tied": Field(
        bool, "embedding and head share their weights, if not as the family has it"
    ),
    "model.qk_norm": Field(False, "normalise queries and keys"),
    "model.z_loss": Field(0.0, "weight of the squared log-normaliser", low=0),
    "model.dtype": Field(
        "float32", "of activations; weights are float32", ("float32", "bfloat16")
    ),
    "model.remat": Field(False, "recompute each layer in the backward pass"),
    "model.unroll": Field(False, "compile each layer apart: faster steps on a CPU"),
    "optimizer.name": Field("adamw", "an entry of optlab's registry"),
    "optimizer.learning_rate": Field(
        1e-2, "peak rate (hidden matrices)", positive=True
    ),
    "optimizer.adam_learning_rate": Field(
        float,
        "peak rate of the leaves that are no hidden matrix, if not the same",
        positive=True,
    ),
    "optimizer.weight_decay": Field(0.1, "decoupled; vectors never decay", low=0),
    "optimizer.gradient": Field(
        "exact",
        "how gradients are made: exact by back-propagation, zeroth from losses alone, "
        "forward from derivatives along random directions",
        ("exact", "zeroth", "forward"),
    ),
    "optimizer.gradient_samples": Field(
        1,
        "random directions of a zeroth or forward gradient",
        low=1,
        high=_MANY,
        only=("optimizer.gradient", "zeroth", "forward"),
    ),
    "optimizer.gradient_mu": Field(
        1e-3,
        "distance at which zeroth takes the loss on both sides",
        positive=True,
        only=("optimizer.gradient", "zeroth"),
    ),
    "optimizer.wrappers": Field(
        "",
        "around the optimizer, from the inside out, such as cautious, "
        f"skip_spikes(watch=loss): {', '.join(WRAPPERS)}; docs/wrappers.md has them",
    ),
    "schedule.name": Field("cosine", "shape of the rates", SCHEDULES.keys()),
    "schedule.warmup_fraction": Field(
        0.0, "share of the steps in which rates rise linearly", low=0, high=0.99
    ),
    "train.steps": Field(1000, "optimizer steps", low=1, high=2**31 - 1),
    "train.batch_size": Field(16, "windows or images in a step", low=1, high=_MANY),
    "train.accumulate": Field(
        1, "microbatches that a step works through, dividing the batch", low=1
    ),
    "train.clip_norm": Field(0.0, "largest global gradient norm; 0: no limit", low=0),
    "train.log_every": Field(
        int, "steps between records; by default 1 below 1,000 steps, else 10", low=1
    ),
    "train.eval_every": Field(100, "steps between evaluations; one at the end", low=1),
    "train.checkpoint_every": Field(
        500,
        "steps between checkpoints; there is one at the end too, and where a signal "
        "stops the run; 0: only there",
        low=0,
    ),
    "train.keep_checkpoints": Field(
        2, "checkpoints to keep, the newest ones; 0: all, to look at later", low=0
    ),
    "train.fork_run": Field(
        str,
        "a run's folder whose weights the training starts from; optimizer, schedule "
        "and data begin as in any run",
        is_path=True,
    ),
    "train.fork_step": Field(
        int,
        "of the checkpoint of fork_run, the newest if not given",
        low=0,
        only=("train.fork_run",),
    ),
    "train.max_bad_steps": Field(
        10,
        "the run stops after this many non-finite steps in a row, which are skipped; "
        "checked at each record",
        low=1,
    ),
    "train.ema_decay": Field(
        0.0,
        "of a moving average of the weights, evaluated beside them; 0: none",
        low=0,
        high=0.999999,
    ),
    "train.diagnostics_every": Field(
        0,
        "steps between records of every layer's norms, for which one step is worked "
        "out twice; 0: none",
        low=0,
    ),
    "train.wandb_project": Field(
        str, "on Weights & Biases, where the records go too; needs wandb"
    ),
    "mesh.data": Field(
        1, "devices that batches and parameters are split over; -1: all", low=-1
    ),
    "mesh.model": Field(1, "devices that each layer is split over", low=1),
    "mesh.slice": Field(
        1, "groups of devices with slow links between; batches are split", low=1
    ),
    "mesh.mode": Field(
        "jit",
        "jit shards all state; pmap keeps all of it on every device",
        ("jit", "pmap"),
    ),
    "faults.spike_every": Field(
        0,
        "steps between gradients that are made too large, for studies; 0: none",
        low=0,
    ),
    "faults.spike_scale": Field(
        1000.0,
        "what such a gradient is multiplied by",
        positive=True,
        only=("faults.spike_every",),
    ),
    "faults.outliers": Field(
        0.0,
        "share of a gradient's elements that are outliers at every step, for studies; "
        "0: none",
        low=0,
        high=1,
    ),
    "faults.outlier_scale": Field(
        30.0,
        "size of an outlier, by the leaf's root mean square: this or more, with a "
        "heavy tail",
        positive=True,
        only=("faults.outliers",),
    ),
}
