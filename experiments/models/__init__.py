"""What is trained: one module per family."""

from experiments.models import llama

# Name in `model.name` -> (config.model, vocab_size) -> model in pure functions.
MODELS = {"llama": llama.Llama}
