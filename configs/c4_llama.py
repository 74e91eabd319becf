"""LLaMA of 60M to 1B parameters on C4, as GaLore, SPAM and COSMOS train it.

512 windows of 256 tokens make a step; rates rise over a tenth of the steps, then follow
a cosine down to a tenth. 60M by default; for the others pass

    --config.model.size=130M --config.train.steps=20000
    --config.model.size=350M --config.train.steps=60000
    --config.model.size=1B   --config.train.steps=100000

which is 1.3, 2.6, 7.9 and 13.1 G tokens.

The shards: `python -m experiments.prepare --output=data/c4 --dataset=allenai/c4
--subset=en --validation_split=validation --limit=3000000 --tokenizer=tokenizer.json`
with LLaMA's or T5's tokenizer.json (the papers use T5's), or without it to train BPE.
`--config.task.data=stream --config.task.path=allenai/c4 --config.task.subset=en
--config.task.tokenizer=tokenizer.json` reads the data set as it comes instead.

Expected, from GaLore's table 2 (arXiv 2403.03507) for Adam: validation perplexity 34.06
(60M), 25.08 (130M), 18.80 (350M), 15.56 (1B), that is 3.53, 3.22, 2.93, 2.74 nats with
T5's tokens; other tokenizers give other numbers. At 6 FLOPs a parameter and token and
40% of an H200's 990 TFLOP/s, one takes 0.3 h (60M), 1.5 h, 12 h and 73 h (1B). Both are
others' numbers and an estimate: this needs an accelerator and the data set.
"""

from experiments import config as configs


def get_config():
    config = configs.base()
    config.task.data = "shards"
    config.task.path = "data/c4"
    config.task.context = 256
    config.task.eval_windows = 4096
    config.model.size = "60M"
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup_fraction = 0.1
    config.schedule.kwargs = {"end_value": 0.1}
    config.train.steps = 10_000
    config.train.batch_size = 512
    config.train.clip_norm = 1.0
    config.train.eval_every = 1000
    config.train.diagnostics_every = 500
    return config
