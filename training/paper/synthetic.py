"""Synthetic retrieval (section 6.1 of the paper): pairs of a key and a value, then one query; how much does S hold?

Setting 1, capacity: U pairs, keys and values without replacement. Setting 2, updates: 2 U pairs with replacement, so
that keys come back with new values, and the last one counts. The loss is half the squared error against a one-hot
value.

For a sequence and its queries every model here is a matrix of weights [queries, pairs] over one-hot values, so training
needs no state: the sum rule's weights are the kernel phi(q).phi(k), softmax's are a softmax, and the delta rule's are
phi(q) K^T (I + L)^-1 diag(beta), L_ij = beta_i k_i.k_j for j < i. The server's ops compute the same token by token; see
bench/retrieval.cc, which evaluates the exported models.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import weights_file
from training.paper.features import draw_projection, features
from training.paper.runs import Run, say

KEY_WIDTH = 64
SUM_EPS = 1e-6  # in the denominator of a read
EVALUATION_SEQUENCES = 20
TOLERANCE = 1e-4  # between PyTorch and the server's kernels, of the mean loss

Rule = Literal["softmax", "sum", "delta"]


@dataclass(frozen=True)
class System:
    """A row of the figures."""

    name: str
    rule: Rule
    feature_map: str = "identity"  # a name of features.py
    rolls: int = 0  # of dpfp
    projections: int = 0  # of favor

    @property
    def feature_count(self) -> int:
        """E, the rows of the state; 0 for softmax, whose state grows."""
        if self.rule == "softmax":
            return 0
        return {"elu1": KEY_WIDTH, "dpfp": 2 * self.rolls * KEY_WIDTH, "favor": 2 * self.projections}[self.feature_map]


CAPACITY = (
    System("softmax", "softmax"),
    System("linear-sum", "sum", "elu1"),
    System("dpfp1-sum", "sum", "dpfp", rolls=1),
    System("dpfp2-sum", "sum", "dpfp", rolls=2),
    System("dpfp3-sum", "sum", "dpfp", rolls=3),
    System("favor64-sum", "sum", "favor", projections=64),
    System("favor128-sum", "sum", "favor", projections=128),
    System("favor512-sum", "sum", "favor", projections=512),
)
UPDATES = (
    System("dpfp1-sum", "sum", "dpfp", rolls=1),
    System("dpfp1-delta", "delta", "dpfp", rolls=1),
    System("linear-delta", "delta", "elu1"),
    System("dpfp2-delta", "delta", "dpfp", rolls=2),
)


class Sequences(NamedTuple):
    """Ids: keys and values [B,L], queries and the values they ask for [B,Q] (-1: no query)."""

    keys: Tensor
    values: Tensor
    queries: Tensor
    targets: Tensor


def draw(setting: int, unique: int, length: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, length]: without replacement in setting 1, with it in setting 2."""
    if setting == 1:
        shape = (batch, unique)
        return tuple(torch.rand(shape, generator=generator).argsort(-1)[:, :length] for _ in range(2))  # type: ignore
    return tuple(torch.randint(unique, (batch, length), generator=generator) for _ in range(2))  # type: ignore


def with_one_query(keys: Tensor, values: Tensor, generator: torch.Generator) -> Sequences:
    """For training: the key of a uniformly chosen position, and the value that it was last paired with."""
    batch, length = keys.shape
    position = torch.randint(length, (batch, 1), generator=generator)
    query = keys.gather(1, position)
    last = torch.where(keys == query, torch.arange(length), -1).argmax(1, keepdim=True)
    return Sequences(keys, values, query, values.gather(1, last))


def with_all_queries(keys: Tensor, values: Tensor, unique: int) -> Sequences:
    """For evaluation: every key that occurs, once."""
    batch, length = keys.shape
    last = torch.full((batch, unique), -1).scatter_reduce(1, keys, torch.arange(length).expand_as(keys), "amax")
    targets = torch.where(last < 0, -1, values.gather(1, last.clamp(min=0)))
    queries = torch.where(last < 0, -1, torch.arange(unique).expand_as(last))
    return Sequences(keys, values, queries, targets)


class RetrievalModel(nn.Module):
    """One head, one layer. Keys come from [one-hot value; embedding of the key], queries from the embedding."""

    def __init__(self, system: System, unique: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.system, self.unique = system, unique
        width = int(2.2 * unique)
        self.embedding = nn.Parameter(torch.randn(unique, width))
        self.k_proj = nn.Linear(unique + width, KEY_WIDTH)
        self.q_proj = nn.Linear(width, KEY_WIDTH)
        for layer in (self.k_proj, self.q_proj):
            if system.rule == "softmax":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.uniform_(layer.weight, -(KEY_WIDTH**-0.5), KEY_WIDTH**-0.5)
        if system.rule == "delta":
            self.b_proj = nn.Linear(unique + width, 1)
        if system.feature_map == "favor":
            self.register_buffer("projection", draw_projection(KEY_WIDTH, system.projections))

    def _paired(self, layer: nn.Linear, keys: Tensor, values: Tensor) -> Tensor:
        """layer([one-hot value; embedding of the key]): a row per value and one per key, added."""
        by_value, by_key = layer.weight.split((self.unique, self.embedding.shape[1]), 1)
        return by_value.t()[values] + (self.embedding @ by_key.t())[keys] + layer.bias

    def _kernel(self, q: Tensor, k: Tensor) -> Tensor:
        """phi(q).phi(k) [B,Q,L]."""
        s = self.system
        if s.feature_map == "dpfp" and q.shape[1] == 1:
            # r_j r_(j-i) of q times that of k is p_j p_(j-i) with p = r(q) r(k): no features need be stored.
            p = torch.cat((F.relu(q) * F.relu(k), F.relu(-q) * F.relu(-k)), -1)
            return sum((p * p.roll(i, -1)).sum(-1) for i in range(1, s.rolls + 1))[:, None]  # type: ignore[union-attr]
        return self._features(q) @ self._features(k).transpose(1, 2)

    def _features(self, x: Tensor) -> Tensor:
        s = self.system
        return features(x, s.feature_map, rolls=s.rolls, projection=getattr(self, "projection", None))

    def weights(self, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        """[B,Q,L]: how much of each pair's value a query gets."""
        k, q = self._paired(self.k_proj, keys, values), self.q_proj(self.embedding)[queries]
        if self.system.rule == "softmax":
            return (q @ k.transpose(1, 2) * KEY_WIDTH**-0.5).softmax(-1)
        if self.system.rule == "sum":
            scores = self._kernel(q, k)
            return scores / (scores.sum(-1, keepdim=True) + SUM_EPS)
        k, q = self._features(k), self._features(q)
        k = k / k.sum(-1, keepdim=True)
        q = q / (q.sum(-1, keepdim=True) + SUM_EPS)
        beta = self._paired(self.b_proj, keys, values).sigmoid()  # [B,L,1]
        overlap = beta * (k @ k.transpose(1, 2)).tril(-1)
        reads = q @ k.transpose(1, 2)
        solved = torch.linalg.solve_triangular(overlap, reads, upper=False, left=False, unitriangular=True)
        return solved * beta.transpose(1, 2)

    def losses(self, sequences: Sequences) -> Tensor:
        """Half the squared error of each query [B,Q]; 0 where there is none."""
        keys, values, queries, targets = sequences
        weights = self.weights(keys, values, queries.clamp(min=0))
        shape = (*queries.shape, self.unique)
        read = weights.new_zeros(shape).scatter_add(2, values[:, None].expand_as(weights), weights)
        error = read - F.one_hot(targets.clamp(min=0), self.unique)
        return 0.5 * error.square().sum(-1) * (queries >= 0)

    def redraw(self) -> None:
        """A new random projection: FAVOR+ is trained with one for each step."""
        if self.system.feature_map == "favor":
            self.projection = draw_projection(KEY_WIDTH, self.system.projections)


@torch.no_grad()
def mean_loss(model: RetrievalModel, sequences: Sequences) -> float:
    """Over all queries of all sequences, a sequence at a time: big ones would not fit the cache."""
    total = sum(model.losses(Sequences(*(x[i : i + 1] for x in sequences))).sum() for i in range(len(sequences.keys)))
    return (total / (sequences.queries >= 0).sum()).item()


@dataclass(frozen=True)
class Task:
    """One point of a figure."""

    setting: int
    system: System
    unique: int  # U

    @property
    def name(self) -> str:
        """Of its run."""
        return f"setting{self.setting}-{self.system.name}-u{self.unique}"

    @property
    def length(self) -> int:
        """Pairs of a training sequence."""
        return self.unique * self.setting

    def cost(self) -> float:
        """About how long a step takes, to do the short runs first."""
        features_per_pair = self.system.feature_count or KEY_WIDTH
        return self.length * (features_per_pair + KEY_WIDTH) * (3 if self.system.rule == "delta" else 1)


class Budget(NamedTuple):
    """When a run stops if it neither learns the task nor gets stuck."""

    steps: int = 100_000
    minutes: float = 10.0


def train(task: Task, budget: Budget, seed: int = 1) -> tuple[RetrievalModel, dict[str, Any]]:
    """The paper's protocol: Adam 1e-3, batch 32, evaluation every 100 steps on 20 new sequences of U pairs."""
    generator = torch.Generator().manual_seed(seed)
    model = RetrievalModel(task.system, task.unique, seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    start, step, curve, best, without_best, stopped = time.monotonic(), 0, [], float("inf"), 0, ""
    while not stopped:
        model.redraw()
        pairs = draw(task.setting, task.unique, task.length, 32, generator)
        loss = model.losses(with_one_query(*pairs, generator)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        if step % 100:
            continue
        pairs = draw(task.setting, task.unique, task.unique, EVALUATION_SEQUENCES, generator)
        curve.append(mean_loss(model, with_all_queries(*pairs, task.unique)))
        without_best = 0 if curve[-1] < best else without_best + 1
        best = min(best, curve[-1])
        if curve[-1] != curve[-1]:
            stopped = "not a number"
        elif curve[-1] <= 0.001:
            stopped = "solved"
        elif without_best > 10:
            stopped = "no new best in 10 evaluations"
        elif step >= budget.steps:
            stopped = "step limit"
        elif time.monotonic() - start > budget.minutes * 60:
            stopped = "time limit"
    facts = {"steps": step, "stopped": stopped, "seconds": round(time.monotonic() - start, 1), "best_logged": best}
    return model, {**facts, "last_logged": curve[-1], "curve": [round(loss, 5) for loss in curve]}


def evaluation_sets(task: Task) -> dict[int, Sequences]:
    """By length: U pairs, as the authors' code evaluates both settings, and in setting 2 also the 2 U of training."""
    sets = {}
    for length in sorted({task.unique, task.length}):
        generator = torch.Generator().manual_seed(length)
        pairs = draw(task.setting, task.unique, length, EVALUATION_SEQUENCES, generator)
        sets[length] = with_all_queries(*pairs, task.unique)
    return sets


def export(model: RetrievalModel, sets: dict[int, Sequences], path: Path) -> None:
    """Weights, evaluation sequences and settings in one safetensors file."""
    tensors = {name: weights_file.entry(value.detach().numpy(), "F32") for name, value in model.state_dict().items()}
    for length, sequences in sets.items():
        for field, value in zip(Sequences._fields, sequences, strict=True):
            tensors[f"evaluation.{length}.{field}"] = weights_file.entry(value.numpy(), "I32")
    settings = {**asdict(model.system), "unique": model.unique, "lengths": list(sets)}
    weights_file.write(path, tensors, {"settings": json.dumps(settings)})


def served_losses(program: Path, path: Path) -> dict[int, float]:
    """The losses of an exported model as the server's kernels compute them."""
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{program} {path} failed: {done.stderr.strip()}")
    return {int(length): loss for length, loss in json.loads(done.stdout)["losses"].items()}


def tasks(grids: dict[int, tuple[int, ...]], systems: set[str] | None = None) -> list[Task]:
    """All points, short ones first. `grids`: the U of each setting."""
    rows = {1: CAPACITY, 2: UPDATES}
    chosen = [Task(s, system, u) for s, grid in grids.items() for u in grid for system in rows[s]]
    chosen = [task for task in chosen if systems is None or task.system.name in systems]
    return sorted(chosen, key=Task.cost)


def run(todo: list[Task], work: Path, budget: Budget, program: Path | None) -> None:
    """Trains and measures each task that has no result yet. Without `program`, the kernels' losses come later."""
    for number, task in enumerate(todo, 1):
        kept = Run(work / "synthetic" / task.name)
        path = kept.folder / "model.safetensors"
        if not kept.finished():
            say(f"[{number}/{len(todo)}] {task.name}: training")
            model, facts = train(task, budget)
            sets = evaluation_sets(task)
            kept.folder.mkdir(parents=True, exist_ok=True)
            export(model, sets, path)
            losses = {str(length): mean_loss(model, sequences) for length, sequences in sets.items()}
            point = {"setting": task.setting, "system": task.system.name, "unique": task.unique}
            point["features"] = task.system.feature_count
            kept.finish({"name": task.name, **point, **facts, "losses": losses})
            say(f"    loss {losses}, {facts['steps']} steps, {facts['seconds']} s: {facts['stopped']}")
        if program is not None and "served_losses" not in kept.result():
            result = kept.result()
            served = served_losses(program, path)
            for length, loss in served.items():
                difference = abs(loss - result["losses"][str(length)])
                if not difference <= TOLERANCE:
                    raise RuntimeError(f"{path}: the kernels' loss is {loss}, PyTorch's differs by {difference}")
            kept.finish({**result, "served_losses": {str(length): loss for length, loss in served.items()}})
