"""A task joins data, model and loss; the trainer sees nothing else.

A task has `init(key) -> params` (a plain nested dictionary),
`loss(params, batch, key) -> (loss, auxiliary scalars)`, `eval_loss(params, batch)`, the
mean loss of an evaluation batch, `roles`, the rule for the optimizer,
`train_iterator(seed, process)` (with `get_state` and `set_state`; this process's rows
of each batch), `eval_batches()`, `tokens_per_batch` and `digest`, the hash of its data.
Classification has `eval_metrics(params, batch)` too, the loss and the accuracy.
"""

from experiments.tasks.classification import Classification
from experiments.tasks.language_model import LanguageModel

# Name in `task.name` -> config -> task.
TASKS = {"language_model": LanguageModel, "classification": Classification}
