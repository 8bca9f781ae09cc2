"""Trains a fast-weight language model on text files, within a wall-clock budget, and exports it.

    python -m training.train --config training/configs/books-5m.json --tokenizer work/tokenizer.model \\
        --minutes 120 --work work/books-5m --export checkpoints/books-5m books-train.txt

Tokens are read as streams of consecutive segments with the state carried from one segment to the next and gradients cut
between them. The learning rate follows the share of the time budget that has been used, so the decay ends on time
whatever the machine's speed turns out to be. Everything needed to go on is saved every few minutes; `--resume` goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training import config as configs
from training import fused
from training.export import export_checkpoint
from training.families import parameter_count
from training.mixer import MixerState
from training.model import LanguageModel, State
from training.text import encode_text, load_tokenizer, read_text


@dataclass(frozen=True)
class Streams:
    """Which tokens each stream sees at each step: a pure function of the step, so that resuming needs no position.

    The corpus is cut into blocks of `segments` segments. A stream reads a block from start to end, then goes on with
    the next one of a shuffled order. Streams change blocks at different steps.
    """

    ids: np.ndarray  # uint16 [corpus]
    batch: int
    segment: int
    segments: int  # per block
    seed: int

    def _visit(self, step: int, stream: int) -> tuple[int, int]:
        return divmod(step + stream * self.segments // self.batch, self.segments)

    def tokens(self, step: int) -> Tensor:
        """[batch, segment + 1]: inputs and, one to the right, targets."""
        blocks = (len(self.ids) - 1) // (self.segment * self.segments)
        rows = []
        for stream in range(self.batch):
            visit, segment = self._visit(step, stream)
            epoch, index = divmod(visit * self.batch + stream, blocks)
            block = int(self._order(epoch, blocks)[index])
            start = (block * self.segments + segment) * self.segment
            rows.append(self.ids[start : start + self.segment + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))

    def _order(self, epoch: int, blocks: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(blocks)

    def keep(self, step: int) -> Tensor:
        """[batch] of 0 and 1: 0 where the state starts afresh. Half of the block changes do, the others carry over."""
        kept = []
        for stream in range(self.batch):
            visit, segment = self._visit(step, stream)
            fresh = segment == 0 and np.random.default_rng((self.seed, 1, visit, stream)).random() < 0.5
            kept.append(0.0 if fresh else 1.0)
        return torch.tensor(kept)


def learning_rate_factor(progress: float, step: int, warmup_steps: int, decay_share: float) -> float:
    """Linear warm-up over steps, then constant, then linear to zero over the last `decay_share` of the budget."""
    decay = min(1.0, max(0.0, (1.0 - progress) / decay_share))
    return min(1.0, (step + 1) / warmup_steps) * decay


def make_optimisers(model: LanguageModel, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms, convolutions and the narrow projections."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        wide = parameter.ndim == 2 and min(parameter.shape) >= 32 and ".layers." in name
        (matrices if wide else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=args.weight_decay, momentum=0.95)
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adam]


@torch.no_grad()
def held_out_loss(
    model: LanguageModel, ids: np.ndarray, batch: int = 16, segment: int = 256, segments: int = 4
) -> float:
    """A quick look at unseen text: mean nats per token over `batch` short stretches, each from an empty state."""
    stretch = segment * segments
    starts = np.linspace(0, len(ids) - stretch - 1, batch).astype(int)
    state, total = model.initial_state(batch), 0.0
    for i in range(segments):
        rows = np.stack([ids[s + i * segment : s + (i + 1) * segment + 1].astype(np.int64) for s in starts])
        tokens = torch.from_numpy(rows)
        loss, state = model.loss(tokens[:, :-1], tokens[:, 1:], state)
        total += loss.item()
    return total / segments


def save(path: Path, payload: dict[str, object]) -> None:
    """Writes beside `path` and renames, so that a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(payload, temporary)
    os.replace(temporary, path)


def corpus_ids(args: argparse.Namespace) -> tuple[np.ndarray, float]:
    """The token ids of all texts, encoded once and cached in the work folder, and the bytes per token."""
    cache, meta = args.work / "corpus.npy", args.work / "corpus.json"
    if not cache.exists():
        texts = [read_text(path) for path in args.texts]
        ids = np.concatenate([encode_text(text, args.tokenizer) for text in texts])
        np.save(args.work / "corpus.tmp.npy", ids)
        meta.write_text(json.dumps({"bytes": sum(len(text.encode()) for text in texts), "tokens": len(ids)}))
        os.replace(args.work / "corpus.tmp.npy", cache)
    ids = np.load(cache, mmap_mode="r")
    return ids, json.loads(meta.read_text())["bytes"] / len(ids)


def train(args: argparse.Namespace) -> None:
    """One run of the trainer, to the end of the budget."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    hf_config = json.loads(args.config.read_text())
    config = configs.from_hf(hf_config)
    if load_tokenizer(args.tokenizer).vocab_size() != config.vocab_size:
        raise ValueError(f"{args.config}: vocab_size {config.vocab_size} is not that of {args.tokenizer}")
    ids, bytes_per_token = corpus_ids(args)
    held_out = encode_text(read_text(args.valid), args.tokenizer) if args.valid else None
    bits = 1 / (math.log(2) * bytes_per_token)  # nats per token -> bits per byte

    matmul_dtype = getattr(torch, args.matmul_dtype)
    fuse = not args.plain and matmul_dtype == torch.bfloat16 and fused.available()
    model = LanguageModel(config, chunk=args.chunk, matmul_dtype=matmul_dtype, fuse=fuse)
    model.initialise(args.seed)
    optimisers = make_optimisers(model, args)
    streams = Streams(ids, args.batch, args.segment, args.block_segments, args.seed)
    state: State = model.initial_state(args.batch)
    step, used = 0, 0.0
    checkpoint = args.work / "checkpoint.pt"
    if args.resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, values in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        state = [MixerState(*layer) for layer in saved["state"]]
        step, used = saved["step"], saved["seconds"]

    def snapshot() -> dict[str, object]:
        return {
            "model": model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "state": [tuple(layer) for layer in state],
            "step": step,
            "seconds": used,
        }

    def log(message: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {message}"
        print(line, flush=True)
        with (args.work / "progress.log").open("a") as file:
            file.write(line + "\n")

    budget = args.minutes * 60
    tokens_per_step = args.batch * args.segment
    parameters = parameter_count(hf_config)
    log(f"{parameters} parameters, {len(ids)} tokens, {bytes_per_token:.4f} bytes per token, step {step}")
    clock = last_save = last_log = time.monotonic()
    logged_step, losses = step, []
    while used < budget and not (args.max_steps and step >= args.max_steps):
        factor = learning_rate_factor(used / budget, step, args.warmup_steps, args.decay_share)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor
        tokens, keep = streams.tokens(step), streams.keep(step)
        state = [
            MixerState(layer.fast_weights * keep[:, None, None, None], layer.conv_tail * keep[:, None, None])
            for layer in state
        ]
        loss, next_state = model.loss(tokens[:, :-1], tokens[:, 1:], state)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        state = [layer.detach() for layer in next_state]
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"loss is {losses[-1]} at step {step}")
        step += 1
        now = time.monotonic()
        used, clock = used + now - clock, now
        if step - logged_step >= args.log_every:
            mean, speed = sum(losses) / len(losses), (step - logged_step) * tokens_per_step / (now - last_log)
            log(
                f"step {step} tokens {step * tokens_per_step / 1e6:.2f}M loss {mean:.4f} bits/byte {mean * bits:.4f} "
                f"lr x{factor:.3f} {speed:.0f} tokens/s, {(budget - used) / 60:.1f} minutes left"
            )
            last_log, logged_step, losses = now, step, []
        if now - last_save > args.save_every * 60:
            save(checkpoint, snapshot())
            if held_out is not None:
                log(f"step {step} held-out bits/byte {held_out_loss(model, held_out) * bits:.4f} (short contexts)")
            last_save = time.monotonic()
    save(checkpoint, snapshot())
    log(f"finished: {step} steps, {step * tokens_per_step} tokens, {used / 60:.1f} minutes")
    if args.export:
        export_checkpoint(model.state_dict(), hf_config, args.tokenizer, args.export)
        log(f"exported to {args.export}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("texts", nargs="+", type=Path, help="UTF-8 text files to train on, plain or .xz")
    add("--config", type=Path, required=True, help="config.json of the model to train")
    add("--tokenizer", type=Path, required=True, help="tokenizer.model")
    add("--work", type=Path, required=True, help="folder for the encoded corpus, the training checkpoint and the log")
    add("--valid", type=Path, help="text to look at now and then; never trained on")
    add("--export", type=Path, help="folder to write the finished model to, in Hugging Face form")
    add("--minutes", type=float, required=True, help="training time over all runs; the schedule ends with it")
    add("--max-steps", type=int, default=0, help="stop early after this many steps; 0 is no limit")
    add("--resume", action="store_true", help="go on from the checkpoint in the work folder")
    add("--batch", type=int, default=16, help="streams read side by side")
    add("--segment", type=int, default=256, help="tokens per stream and step; gradients stop at its borders")
    add("--block-segments", type=int, default=32, help="consecutive segments a stream reads before it jumps")
    add("--chunk", type=int, default=32, help="chunk length of the mixer's parallel form")
    add("--matmul-dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type of the large products")
    add("--plain", action="store_true", help="never use the fused passes")
    add("--muon-lr", type=float, default=0.02)
    add("--adam-lr", type=float, default=3e-3)
    add("--weight-decay", type=float, default=0.02, help="of the matrices, per unit of learning rate")
    add("--clip", type=float, default=1.0, help="largest global gradient norm")
    add("--warmup-steps", type=int, default=100)
    add("--decay-share", type=float, default=0.5, help="share of the time budget in which the learning rate falls")
    add("--threads", type=int, default=os.cpu_count())
    add("--seed", type=int, default=0)
    add("--save-every", type=float, default=5.0, metavar="MINUTES")
    add("--log-every", type=int, default=20, metavar="STEPS")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
