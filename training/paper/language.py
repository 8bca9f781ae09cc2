"""Language models of the paper's systems at a small scale: equal shapes, equal data, equal numbers of tokens.

Each is trained on segments that start from a fresh state, without positions, and exported as a `model_type: fwp`
folder. It is measured twice on held-out text: with truncated context (each segment fresh) and with the state carried
from the first token to the last. `-carried` systems also train with the carried state, as the
paper's carried models did.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training import weights_file
from training.paper.model import MixerSettings, MixerState, PaperModel, Shape, State
from training.paper.runs import Run, say, write_json
from training.text import encode_text, load_tokenizer, read_text

TOLERANCE = 1e-3  # between PyTorch's bits per byte and the server's

SYSTEMS = {
    "softmax": MixerSettings(mixer="softmax"),
    "linear-sum": MixerSettings(attention_norm="output"),
    "linear-delta": MixerSettings(update_rule="delta", qk_norm="sum"),
    "dpfp1-sum": MixerSettings(feature_map="dpfp", attention_norm="output"),
    "dpfp1-delta": MixerSettings(update_rule="delta", feature_map="dpfp", qk_norm="sum"),
    "favor-sum": MixerSettings(feature_map="favor", attention_norm="output"),
    "favor-delta": MixerSettings(update_rule="delta", feature_map="favor", qk_norm="sum"),
    "delta-attention-norm": MixerSettings(update_rule="delta", qk_norm="sum", attention_norm="key_and_output"),
}
CARRIED = ("linear-delta", "linear-sum", "delta-attention-norm")  # these are also trained with the state carried
NAMES = (*SYSTEMS, *(f"{name}-carried" for name in CARRIED))


@dataclass(frozen=True)
class Protocol:
    """How every system is trained."""

    tokens: int = 2_500_000
    batch: int = 4
    learning_rate: float = 1.5e-3
    warmup: float = 0.15  # share of the steps; then cosine to zero
    clip: float = 0.25
    seed: int = 1


class Texts:
    """Training and held-out ids, encoded once."""

    def __init__(
        self, train: Path, valid: Path, work: Path, tokenizer: Path, train_bytes: int, valid_bytes: int
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = load_tokenizer(tokenizer).vocab_size()
        cache = work / f"{train.name.removesuffix('.xz')}-{train_bytes}.npy"
        if not cache.exists():
            work.mkdir(parents=True, exist_ok=True)
            text = read_text(train).encode()[:train_bytes].decode(errors="ignore")
            np.save(cache, encode_text(text, tokenizer, workers=1))
        self.train = np.load(cache, mmap_mode="r")
        text = read_text(valid).encode()
        self.valid_text = text[:valid_bytes].decode(errors="ignore")
        self.valid = encode_text(self.valid_text, tokenizer, workers=1)


def detached(state: State) -> State:
    """The same values, cut off from the gradient."""
    return [MixerState(s.memory.detach(), s.accumulator.detach(), s.tokens) for s in state]


def train(name: str, shape: Shape, protocol: Protocol, ids: np.ndarray) -> tuple[PaperModel, dict[str, Any]]:
    """Adam with a linear warm-up and a cosine, the paper's clipping. Every system sees the same tokens in the same
    order: `batch` streams, each a contiguous part of the text, a segment of each per step."""
    model = PaperModel(shape, SYSTEMS[name.removesuffix("-carried")])
    torch.manual_seed(protocol.seed)
    model.initialise(protocol.seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=protocol.learning_rate, fused=True)
    length, steps = shape.segment_length, protocol.tokens // (protocol.batch * shape.segment_length)
    stream = (len(ids) - 1) // protocol.batch
    if steps * length > stream:
        raise ValueError(
            f"{protocol.tokens} tokens are more than the {len(ids)} of the text: choose fewer with --tokens"
        )
    start, state, losses = time.monotonic(), model.initial_state(protocol.batch), []
    for step in range(steps):
        first = [i * stream + step * length for i in range(protocol.batch)]
        rows = torch.from_numpy(np.stack([ids[f : f + length + 1].astype(np.int64) for f in first]))
        if not name.endswith("-carried"):
            state = model.initial_state(protocol.batch)
            model.redraw()
        rise = (step + 1) / max(1, protocol.warmup * steps)
        factor = min(1.0, rise) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = protocol.learning_rate * factor
        logits, state = model(rows[:, :-1], state)
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), protocol.clip)
        optimiser.step()
        state = detached(state)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"    {name}: step {step + 1} of {steps}, {np.mean(losses[-50:]):.3f} nats per token")
    facts = {"steps": len(losses), "tokens": len(losses) * protocol.batch * length}
    facts["last_training_loss"] = float(np.mean(losses[-50:]))
    return model, {**facts, "seconds": round(time.monotonic() - start, 1)}


@torch.inference_mode()
def bits_per_byte(model: PaperModel, ids: np.ndarray, text: str, *, carried: bool, batch: int = 16) -> float:
    """Over all tokens but the first. Truncated: segments of the training length, each from a fresh state."""
    length = model.shape.segment_length
    tokens = torch.from_numpy(ids.astype(np.int64))
    nats = 0.0
    if carried:
        state = model.initial_state(1)
        for first in range(0, len(tokens) - 1, 1024):
            targets = tokens[first + 1 : first + 1025]
            logits, state = model(tokens[None, first : first + len(targets)], state)
            nats += F.cross_entropy(logits[0], targets, reduction="sum").item()
    else:
        whole = (len(tokens) - 1) // length * length
        inputs, targets = tokens[:whole].view(-1, length), tokens[1 : whole + 1].view(-1, length)
        pieces = list(zip(inputs.split(batch), targets.split(batch), strict=True))
        if whole < len(tokens) - 1:
            pieces.append((tokens[None, whole:-1], tokens[None, whole + 1 :]))
        for rows, wanted in pieces:
            logits, _ = model(rows, model.initial_state(len(rows)))
            nats += F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
    return nats / math.log(2) / len(text.encode())


def export(model: PaperModel, folder: Path, tokenizer: Path | None = None) -> None:
    """The folder that the server loads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model.config())
    tensors = {name: weights_file.entry(value.detach().numpy(), "F32") for name, value in model.state_dict().items()}
    weights_file.write(folder / "model.safetensors", tensors)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.model")


def state_floats(model: PaperModel) -> int:
    """What one stream keeps, over all layers."""
    if model.settings.mixer == "softmax":
        return sum(layer.memory.numel() for layer in model.initial_state(1))
    keeps_z = model.settings.attention_norm != "none"
    return sum(s.memory.numel() + keeps_z * s.accumulator.numel() for s in model.initial_state(1))


def served_bits_per_byte(folder: Path, text: str, binaries: Path, work: Path) -> float:
    """With the state carried, through the server: `palimpsest score` against a server of its own."""
    file, port = work / "valid.txt", work / "server.port"
    file.write_text(text)
    port.unlink(missing_ok=True)
    command = [binaries / "palimpsest-server", f"--model=paper={folder}", "--port=0", f"--port_file={port}"]
    log_path = work / "server.log"
    with (
        log_path.open("w") as log,
        subprocess.Popen([*command, "--metrics_address="], stdout=log, stderr=log) as server,
    ):
        try:
            deadline = time.monotonic() + 60
            while not port.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not come up with {folder}: see {log_path}")
                time.sleep(0.1)
            address = f"127.0.0.1:{port.read_text().strip()}"
            score = [binaries / "palimpsest", "score", file, "--json", "--server", address]
            scored = subprocess.run(score, capture_output=True, text=True, check=False)
        finally:
            server.terminate()
    if scored.returncode:
        raise RuntimeError(f"palimpsest score failed on {folder}: {scored.stderr.strip()}")
    answer = json.loads(scored.stdout)
    # The command divides by the bytes that it scored, without those of the first token.
    return answer["bits_per_byte"] * answer["scored_bytes"] / len(text.encode())


def run(names: list[str], work: Path, texts: Texts, shape: Shape, protocol: Protocol, binaries: Path | None) -> None:
    """Trains and measures each system that has no result yet."""
    for number, name in enumerate(names, 1):
        kept = Run(work / "language" / name)
        if not kept.finished():
            say(f"[{number}/{len(names)}] {name}: training on {protocol.tokens} tokens")
            model, facts = train(name, shape, protocol, texts.train)
            if not math.isfinite(facts["last_training_loss"]):
                kept.finish({"name": name, **facts, "diverged": True})
                say(f"    {name}: the loss is not a number")
                continue
            export(model, kept.folder / "model", texts.tokenizer)
            measured = {
                f"{context}_bits_per_byte": bits_per_byte(
                    model, texts.valid, texts.valid_text, carried=context == "carried"
                )
                for context in ("truncated", "carried")
            }
            sizes = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "state_floats": state_floats(model),
                "valid_tokens": len(texts.valid),
                "valid_bytes": len(texts.valid_text.encode()),
            }
            kept.finish({"name": name, **facts, **sizes, **measured, "shape": asdict(shape), **asdict(protocol)})
            say(f"    {measured}, {facts['seconds']} s")
        result = kept.result()
        if binaries is not None and "served_bits_per_byte" not in result and "diverged" not in result:
            served = served_bits_per_byte(kept.folder / "model", texts.valid_text, binaries, work)
            difference = abs(served - result["carried_bits_per_byte"])
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"{name}: the server measures {served} bits per byte, PyTorch differs by {difference}"
                )
            kept.finish({**result, "served_bits_per_byte": served})
            say(f"    {name}: {served:.4f} bits per byte through the server")
