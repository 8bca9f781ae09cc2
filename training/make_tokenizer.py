"""Trains the SentencePiece tokenizer that a checkpoint ships.

The model is BPE with byte fallback and no normalisation at all, so that decode(encode(x)) == x for any valid UTF-8
text without U+2581 (SentencePiece's own mark for a space). Newlines are pieces of their own, alone and in pairs,
because a paragraph break is the most frequent symbol of a book.

    python -m training.make_tokenizer --out work/tokenizer.model books-train.txt
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from training.text import read_text

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2


def sample_paragraphs(texts: list[str], max_bytes: int, seed: int) -> Iterator[str]:
    """Yields random lines of `texts`, without repeats, until `max_bytes` have been given out."""
    lines = [line for text in texts for line in text.split("\n") if line]
    random.Random(seed).shuffle(lines)
    given = 0
    for line in lines:
        given += len(line)
        if given > max_bytes:
            return
        yield line


def train_tokenizer(texts: list[str], vocab_size: int, max_bytes: int, seed: int = 0) -> bytes:
    """Returns the bytes of a tokenizer.model with exactly `vocab_size` pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sample_paragraphs(texts, max_bytes, seed),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=0.99999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,  # appended text must encode the same as the same text in one piece would
        user_defined_symbols=["\n", "\n\n"],
        split_digits=True,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        max_sentence_length=1 << 20,
        num_threads=2,
        minloglevel=1,
    )
    return model.getvalue()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, help="UTF-8 text files, plain or .xz")
    parser.add_argument("--out", type=Path, required=True, help="where to write tokenizer.model")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--sample-mb", type=float, default=40.0, help="how much text to train on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = train_tokenizer(
        [read_text(path) for path in args.texts], args.vocab_size, int(args.sample_mb * 1e6), args.seed
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(model)


if __name__ == "__main__":
    main()
