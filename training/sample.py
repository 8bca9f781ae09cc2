"""Continues a text with a checkpoint, token by token: a way to look at a model without the server.

python -m training.sample --checkpoint checkpoints/books-5m --temperature 0.8 --tokens 200 "It was a dark"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.export import load_model
from training.model import LanguageModel
from training.text import load_tokenizer


@torch.inference_mode()
def continue_ids(model: LanguageModel, prompt: list[int], count: int, temperature: float, seed: int) -> list[int]:
    """`count` ids sampled after `prompt`, which must not be empty. Temperature 0 takes the likeliest."""
    generator = torch.Generator().manual_seed(seed)
    ids, state, generated = torch.tensor([prompt]), model.initial_state(1), []
    for _ in range(count):
        logits, state = model(ids, state)
        last = logits[0, -1]
        if temperature > 0:
            chosen = torch.multinomial(torch.softmax(last / temperature, -1), 1, generator=generator)
        else:
            chosen = last.argmax(keepdim=True)
        generated.append(int(chosen))
        ids = chosen[None]
    return generated


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", help="text to continue")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with tokenizer.model")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.checkpoint / "tokenizer.model")
    model = load_model(args.checkpoint, chunk=0)
    prompt = tokenizer.encode(args.prompt)
    if not prompt:
        parser.error("the prompt is empty")
    generated = continue_ids(model, prompt, args.tokens, args.temperature, args.seed)
    print(tokenizer.decode(prompt + generated))


if __name__ == "__main__":
    main()
