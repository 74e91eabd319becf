"""Text to token numbers: plain bytes, or byte-level BPE, trained here or loaded."""

import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

# uint16 holds the numbers 0 to 65,535.
MOST_TOKENS = 2**16
_END = "<|endoftext|>"
# What GPT-2's, LLaMA's, T5's and Gemma's tokenizers call the end of a document.
_ENDS = (_END, "</s>", "<|end_of_text|>", "<eos>")


def check_vocab_size(size: int, source: str) -> None:
    """Refuses a vocabulary whose numbers do not fit.

    Raises:
      ValueError: naming `source`.
    """
    if size > MOST_TOKENS:
        raise ValueError(
            f"{source}: {size:,} tokens, allowed at most {MOST_TOKENS:,}, "
            "since they are stored as uint16"
        )


def check_bpe_size(size: int, source: str) -> None:
    """Refuses a size that BPE over bytes cannot have.

    Raises:
      ValueError: naming `source`.
    """
    check_vocab_size(size, source)
    if size < 257:
        raise ValueError(f"{source}: given {size}, allowed 257 or more")


class Bytes:
    """UTF-8 bytes as tokens; 0 ends a document, so a text's own becomes U+FFFD."""

    name = "bytes"
    vocab_size = 256
    end = 0
    digest = "bytes"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, uint16."""
        return [
            np.frombuffer(
                text.replace("\0", "\ufffd").encode(errors="replace"), np.uint8
            ).astype(np.uint16)
            for text in texts
        ]

    def save(self, folder: pathlib.Path) -> None:
        """Bytes need no file."""


class Tokenizer:
    """A `tokenizer.json` of Hugging Face's `tokenizers`.

    Texts are encoded whole: what the file says of truncation and padding, which are for
    other uses, is switched off. A special token's name in a text is plain text.
    """

    name = "tokenizer.json"

    def __init__(self, tokenizer, source: str):
        """Wraps a `tokenizers.Tokenizer`.

        Raises:
          ValueError: naming `source`, if the vocabulary is too large or no token ends
            a document.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        # Added tokens may leave holes in the numbers.
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())
        check_vocab_size(self.vocab_size, source)
        ends = [tokenizer.token_to_id(name) for name in _ENDS]
        found = [number for number in ends if number is not None]
        if not found:
            raise ValueError(f"{source}: has none of the tokens {' '.join(_ENDS)}")
        self.end = found[0]
        self._end_name = tokenizer.id_to_token(self.end)
        self.digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, uint16."""
        encoded = self._encode(texts)
        for i, tokens in enumerate(encoded):
            if (tokens == self.end).any():
                # The file does not call the name special: it is cut in two.
                first, *others = texts[i].split(self._end_name)
                head, tail = self._end_name[:1], self._end_name[1:]
                parts = [first, *(tail + other for other in others)]
                parts[:-1] = [part + head for part in parts[:-1]]
                encoded[i] = np.concatenate(self._encode(parts))
        return encoded

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(
            list(texts), add_special_tokens=False
        )
        return [np.array(one.ids, np.uint16) for one in encoded]

    def save(self, folder: pathlib.Path) -> None:
        """Writes `tokenizer.json` into a folder."""
        # Not by the library, whose errors do not name the file.
        (folder / self.name).write_text(self._tokenizer.to_str(pretty=True))


def load(path: str | None, source: str = "task.tokenizer") -> Bytes | Tokenizer:
    """The tokenizer of a file, or bytes where there is no path.

    Args:
      path: of a `tokenizer.json`.
      source: the field or flag that errors name.

    Raises:
      ValueError: if the file is no tokenizer of ours to use.
    """
    if path is None:
        return Bytes()
    import tokenizers

    if not pathlib.Path(path).is_file():
        raise ValueError(f"{source}: no file {path!r}")
    try:
        loaded = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: {path} is no tokenizer.json: {reason}") from error
    return Tokenizer(loaded, f"{source}: {path}")


def train(texts: Iterable[str], vocab_size: int, source: str) -> Tokenizer:
    """Trains byte-level BPE; too little text gives fewer tokens than asked for.

    Args:
      texts: what to learn from.
      vocab_size: of the result, with the 256 bytes and the end of a document.
      source: the field or flag that errors name.

    Raises:
      ValueError: if the size does not fit.
    """
    import tokenizers

    check_bpe_size(vocab_size, source)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END],
        initial_alphabet=split.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer(tokenizer, source)
