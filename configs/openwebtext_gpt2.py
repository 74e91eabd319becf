"""GPT-2 small on OpenWebText, with nanoGPT's data and batch.

480 windows of 1,024 tokens make a step, worked through in 10 parts; the vocabulary is
padded to 50,304. `data/openwebtext` holds `train.bin` and `val.bin` as nanoGPT's
`data/openwebtext/prepare.py` writes them, or shards of `experiments.prepare` with
GPT-2's tokenizer.json; `--config.model.size=medium` and so on for the larger models.

Expected: nanoGPT's README gives a validation loss of about 2.85 nats after 600,000
steps of AdamW (300 G tokens, four days on eight A100); 100,000 steps, the length that
optimizer papers compare at, end somewhat above, after 26 hours of one H200 (6 FLOPs a
parameter and token at 40% of 990 TFLOP/s). Both are others' numbers and an estimate:
this needs accelerators and the data set.
"""

from experiments import config as configs


def get_config():
    config = configs.base()
    config.task.data = "shards"
    config.task.path = "data/openwebtext"
    config.task.vocab_size = 50_304
    config.task.context = 1024
    config.task.eval_windows = 1024
    config.model.name = "gpt2"
    config.model.size = "small"
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 6e-4
    config.schedule.warmup_fraction = 0.02
    config.schedule.kwargs = {"end_value": 0.1}
    config.train.steps = 100_000
    config.train.batch_size = 480
    config.train.accumulate = 10
    config.train.clip_norm = 1.0
    config.train.eval_every = 2000
    config.train.diagnostics_every = 500
    return config
