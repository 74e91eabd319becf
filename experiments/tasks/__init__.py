"""A task joins data, model and loss; the trainer sees nothing else.

A task has `init(key) -> params` (a plain nested dictionary),
`loss(params, batch, key) -> (loss, auxiliary scalars)`, `eval_metrics(params, batch)`,
scalars of an evaluation batch with `loss` among them, `roles`, the optimizer's rule,
`train_iterator(seed, process)` (with `get_state` and `set_state`; this process's rows
of each batch), `eval_batches()`, `tokens_per_batch`, `digest`, the hash of its data,
and `files`, one of each file that may change by its name ({} of other data).
"""

from experiments.tasks.classification import Classification
from experiments.tasks.language_model import LanguageModel

# Name in `task.name` -> config -> task.
TASKS = {"language_model": LanguageModel, "classification": Classification}
