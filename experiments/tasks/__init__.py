"""A task joins data, model and loss; the trainer sees nothing else.

A task has `init(key) -> params` (a plain nested dictionary),
`loss(params, batch, key) -> (loss, auxiliary scalars)`, `eval_loss(params, batch)`, the
mean loss of an evaluation batch, `roles`, the rule for the optimizer,
`train_iterator(seed)` (with `get_state` and `set_state`), `eval_batches()`,
`tokens_per_batch` and `digest`, the hash of its data.
"""

from experiments.tasks.language_model import LanguageModel

# Name in `task.name` -> config -> task.
TASKS = {"language_model": LanguageModel}
