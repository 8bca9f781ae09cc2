"""Imports a model of the toolkit of "Linear Transformers Are Secretly Fast Weight Programmers" (IDSIA/lmtool-fwp).

Reads what its `train.py` saved, the pickled model (`best_model.pt`) or a `state_dict` with the run's `log.txt`, and
writes a folder that Palimpsest serves: config.json, model.safetensors and the vocabulary. Nothing of the pickle is
executed, and PyTorch is not needed.

Supported attention types: 0 (Transformer-XL), 2 (softmax), 4, 5, 6, 34, 35, 36 (sum rule), 24, 25, 26, 44, 45, 46
(delta rule), with and without --skip_attn_normalization.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training import torch_pickle, weights_file
from training.checkpoint import SINGLE, write_json

# Modules of the toolkit whose classes a saved model or corpus is made of, in its release of February 2021, too.
MODULES = ["model_main", "mem_transformer", "utils", "data_utils", "__main__"]

_ELU = {"feature_map": "elu1"}
_FAVOR = {"feature_map": "favor"}
_DPFP = {"feature_map": "dpfp"}
_SUM_A = {"update_rule": "sum", "attention_norm": "output", "scaled_denominator": True}
_SUM_B = {"update_rule": "sum", "attention_norm": "output"}
_DELTA = {"update_rule": "delta", "qk_norm": "sum", "attention_norm": "output"}
_DELTA_NORM = {"update_rule": "delta", "qk_norm": "sum", "attention_norm": "key_and_output"}
ATTENTION_TYPES: dict[int, dict[str, Any]] = {
    0: {"mixer": "softmax"},
    2: {"mixer": "softmax"},
    4: _SUM_A | _ELU,
    5: _SUM_A | _FAVOR,
    6: _SUM_A | _DPFP,
    24: _DELTA | _ELU,
    25: _DELTA | _FAVOR,
    26: _DELTA | _DPFP,
    34: _SUM_B | _ELU,
    35: _SUM_B | _FAVOR,
    36: _SUM_B | _DPFP,
    44: _DELTA_NORM | _ELU,
    45: _DELTA_NORM | _FAVOR,
    46: _DELTA_NORM | _DPFP,
}
_REASONS = {
    1: "learned relative positions",
    3: "learned positions; it does not run in the toolkit either",
    10: "a debugging layer of the toolkit",
    14: "a prototype of 24 without attention normalisation",
    16: "a prototype of 26 without attention normalisation",
    54: "the Delta MLP, whose fast weights are two layers deep",
    64: "the Delta Delta Net, whose fast weights write fast weights",
    80: "an RNN",
    90: "an LSTM",
    124: "the Delta RNN, whose read depends on its last output",
    134: "the Delta RNN, whose read depends on its last output",
    224: "the Delta LSTM", 234: "the Delta LSTM", 244: "the Delta LSTM", 254: "the Delta LSTM",
    324: "a delta net that an LSTM writes",
    934: "the Recurrent Delta Net, whose queries and keys depend on its last output",
}  # fmt: skip


class ImportRefusedError(ValueError):
    """The model cannot be expressed; the message says what stands against it."""


@dataclass
class Source:
    """A model of the toolkit: settings by the toolkit's names, tensors by the names of its state_dict."""

    attn_type: int
    n_layer: int
    n_head: int
    d_head: int
    d_model: int
    d_embed: int
    cutoffs: list[int]
    div_val: int
    pre_lnorm: bool
    no_pos: bool
    tgt_len: int
    mem_len: int
    clamp_len: int
    skip_attn_normalization: bool
    n_roll: int
    use_sum_norm: bool
    tensors: dict[str, np.ndarray]
    proj_matrices: list[np.ndarray] = field(default_factory=list)  # [d_head, m] of each layer, FAVOR+ only


def _refuse_unless(condition: bool, message: str) -> None:
    if not condition:
        raise ImportRefusedError(message)


def _check_type(attn_type: int) -> None:
    if attn_type in ATTENTION_TYPES:
        return
    reason = _REASONS.get(attn_type, "no type of the toolkit's that runs")
    supported = ", ".join(str(known) for known in ATTENTION_TYPES)
    raise ImportRefusedError(f"attn_type {attn_type} is {reason}: not supported; supported are {supported}")


def from_module(model: torch_pickle.Record) -> Source:
    """The pickled model object itself: everything is in it but the vocabulary."""
    attn_type = int(model.get("attn_type"))
    _check_type(attn_type)
    _refuse_unless(not model.get("same_length", False), "same_length is set: its attention mask is not supported")
    d_model = model.get("d_model")
    _refuse_unless(model.get("d_res", d_model) == d_model, "d_res differs from d_model, which is not supported")
    _refuse_unless(not model.get("ext_len", 0), "ext_len is not 0: extended contexts are not supported")
    layers = [model.get("layers").get(str(i)) for i in range(model.get("n_layer"))]
    for layer in layers:
        _refuse_unless(layer.get("use_ff", True), "a model with --remove_ff is not supported")
    mixers = [layer.get("dec_attn") for layer in layers]
    first, crit = mixers[0], model.get("crit")
    _refuse_unless(crit is not None, "the model was trained with sampled softmax, which has another output layer")
    return Source(
        attn_type=attn_type,
        n_layer=model.get("n_layer"),
        n_head=model.get("n_head"),
        d_head=model.get("d_head"),
        d_model=d_model,
        d_embed=model.get("d_embed"),
        cutoffs=list(crit.get("cutoffs"))[:-1],
        div_val=crit.get("div_val"),
        pre_lnorm=first.get("pre_lnorm", False),
        no_pos=model.get("no_pos", False),
        tgt_len=model.get("tgt_len"),
        mem_len=model.get("mem_len"),
        clamp_len=model.get("clamp_len", -1),
        skip_attn_normalization=not first.get("normalize_attn_scores", True),
        n_roll=first.get("n_roll", 0),
        # Absent in February 2021, where these types always normalised.
        use_sum_norm=bool(first.get("use_sum_norm", True)),
        tensors=model.tensors(),
        proj_matrices=[mixer.get("proj_matrix") for mixer in mixers if mixer.get("proj_matrix") is not None],
    )


def read_log(path: Path) -> dict[str, str]:
    """The arguments that the toolkit's `log.txt` lists."""
    found = re.findall(r"^\s+- (\w+) : (.*)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    _refuse_unless(bool(found), f"{path}: no lines '    - name : value': this is not a log of the toolkit")
    return dict(found)


def _standard_cutoffs(arguments: dict[str, str]) -> list[int]:
    if arguments.get("adaptive") != "True":
        return []
    known = {"wt103": [20000, 40000, 200000], "lm1b": [60000, 100000, 640000]}
    dataset = arguments.get("dataset", "")
    _refuse_unless(dataset in known, f"the cutoffs of dataset {dataset!r} are not known: give --cutoffs")
    return known[dataset]


def from_state_dict(
    tensors: dict[str, np.ndarray], arguments: dict[str, str], cutoffs: list[int] | None, favor_seed: int | None
) -> Source:
    """A bare state_dict, with the settings that the run's log tells."""

    def number(name: str, default: int | None = None) -> int:
        text = arguments.get(name)
        if text in (None, "None"):
            _refuse_unless(default is not None, f"the log does not tell {name}")
            return int(default or 0)
        return int(str(text))

    attn_type = number("attn_type")
    _check_type(attn_type)
    for flag in ("remove_ff", "same_length"):
        _refuse_unless(arguments.get(flag) != "True", f"a model with --{flag} is not supported")
    d_model, d_head, n_layer = number("d_model"), number("d_head"), number("n_layer")
    matrices: list[np.ndarray] = []
    if ATTENTION_TYPES[attn_type].get("feature_map") == "favor":
        _refuse_unless(
            favor_seed is not None,
            "FAVOR+'s projections are not in a state_dict: import the pickled model, or draw new ones with "
            "--favor_seed (the model's perplexity then changes a little)",
        )
        random = np.random.default_rng(favor_seed)
        matrices = [draw_favor_matrix(random, d_head, number("performer_proj_dim", 16)) for _ in range(n_layer)]
    return Source(
        attn_type=attn_type,
        n_layer=n_layer,
        n_head=number("n_head"),
        d_head=d_head,
        d_model=d_model,
        d_embed=number("d_embed", d_model) if number("d_embed", -1) > 0 else d_model,
        cutoffs=_standard_cutoffs(arguments) if cutoffs is None else cutoffs,
        div_val=number("div_val", 1),
        pre_lnorm=arguments.get("pre_lnorm") == "True",
        no_pos=arguments.get("no_pos") == "True",
        tgt_len=number("tgt_len"),
        mem_len=number("mem_len", 0),
        clamp_len=number("clamp_len", -1),
        skip_attn_normalization=arguments.get("skip_attn_normalization") == "True",
        n_roll=number("dpfp_n_roll", 2),
        use_sum_norm=False,
        tensors={name: value for name, value in tensors.items() if isinstance(value, np.ndarray)},
        proj_matrices=matrices,
    )


def draw_favor_matrix(random: np.random.Generator, d: int, m: int) -> np.ndarray:
    """A random projection [d, m] as the toolkit draws them: orthogonal blocks, rows of the length of Gaussian ones."""
    blocks = [np.linalg.qr(random.standard_normal((m, m)))[0].T for _ in range(-(-d // m))]
    lengths = np.linalg.norm(random.standard_normal((d, m)), axis=1, keepdims=True)
    return (np.concatenate(blocks)[:d] * lengths).astype(np.float32)


def _positions(source: Source) -> dict[str, Any]:
    last = source.tgt_len - 1
    if source.attn_type == 0:
        return {"positions": "relative", "memory_length": source.mem_len, "clamp_length": source.clamp_len}
    _refuse_unless(source.mem_len == 0, f"mem_len is {source.mem_len}, which only Transformer-XL uses as meant")
    if source.no_pos:
        return {"positions": "none"}
    _refuse_unless(
        source.clamp_len <= 0 or source.clamp_len >= last,
        f"clamp_len {source.clamp_len} cuts the positions of segments of {source.tgt_len}: not supported",
    )
    return {"positions": "sinusoidal"}


def config_of(source: Source, inner: int) -> dict[str, Any]:
    """The settings as Palimpsest's config.json has them."""
    mixer = dict(ATTENTION_TYPES[source.attn_type])
    if source.skip_attn_normalization and not mixer.get("scaled_denominator", False) and "attention_norm" in mixer:
        mixer["attention_norm"] = "none"
    if source.attn_type in (34, 35, 36):
        mixer["qk_norm"] = "sum" if source.use_sum_norm else "none"
    if mixer.get("feature_map") == "dpfp":
        mixer["dpfp_nu"] = source.n_roll
    if mixer.get("feature_map") == "favor":
        mixer["favor_features"] = source.proj_matrices[0].shape[1]
    placement = "post"
    if source.pre_lnorm:
        placement = {0: "pre", 2: "pre_raw_query", 4: "pre_raw_query", 5: "pre_raw_query", 6: "pre_raw_query"}.get(
            source.attn_type, "pre_normed_residual"
        )
    vocabulary = sum(
        source.tensors[f"word_emb.emb_layers.{i}.weight"].shape[0]
        for i in range(1 if source.div_val == 1 else len(source.cutoffs) + 1)
    )
    return {
        "model_type": "fwp",
        "vocab_size": vocabulary,
        "hidden_size": source.d_model,
        "embedding_size": source.d_embed,
        "num_hidden_layers": source.n_layer,
        "num_heads": source.n_head,
        "head_dim": source.d_head,
        "intermediate_size": inner,
        "cutoffs": source.cutoffs,
        "div_val": source.div_val,
        "norm_placement": placement,
        "segment_length": source.tgt_len,
        **_positions(source),
        **mixer,
        "bos_token_id": None,
        "eos_token_id": None,
    }


# Rows of a fused projection for one part of each head: all heads of a part, in order.
def _by_head(fused: np.ndarray, heads: int, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    per_head = fused.reshape(heads, sum(sizes.values()), fused.shape[1])
    parts, at = {}, 0
    for name, size in sizes.items():
        parts[name] = per_head[:, at : at + size].reshape(heads * size, fused.shape[1])
        at += size
    return parts


def _projections(source: Source, take: Callable[[str], np.ndarray], attn: str) -> dict[str, np.ndarray]:
    heads, d = source.n_head, source.d_head
    if source.attn_type in (2, 4, 5, 6):
        k, v = np.split(take(attn + "kv_net.weight"), 2)
        return {"q": take(attn + "q_net.weight"), "k": k, "v": v}
    if source.attn_type == 0:
        q, k, v = np.split(take(attn + "qkv_net.weight"), 3)
        return {"q": q, "k": k, "v": v, "r": take(attn + "r_net.weight")}
    if source.attn_type in (34, 35, 36):
        return _by_head(take(attn + "qkv_net.weight"), heads, {"q": d, "k": d, "v": d})
    return _by_head(take(attn + "qkvb_net.weight"), heads, {"q": d, "k": d, "v": d, "b": 1})


def convert(source: Source) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and the tensors of model.safetensors. Raises ImportRefusedError if something is left over."""
    left = dict(source.tensors)

    def take(name: str) -> np.ndarray:
        _refuse_unless(name in left, f"tensor {name!r} is missing")
        return left.pop(name)

    out: dict[str, np.ndarray] = {}
    tables = 1 if source.div_val == 1 else len(source.cutoffs) + 1
    projected = source.div_val > 1 or source.d_embed != source.d_model
    inner = source.tensors["layers.0.pos_ff.CoreNet.0.weight"].shape[0]
    config = config_of(source, inner)

    tied = True
    heads = []
    for i in range(tables):
        out[f"model.embeddings.{i}.weight"] = take(f"word_emb.emb_layers.{i}.weight")
        if projected:
            out[f"model.embedding_projections.{i}.weight"] = take(f"word_emb.emb_projs.{i}")
        heads.append(take(f"crit.out_layers.{i}.weight"))
        tied = tied and np.array_equal(heads[i], out[f"model.embeddings.{i}.weight"])
        out[f"lm_head.{i}.bias"] = take(f"crit.out_layers.{i}.bias")
    config["tie_word_embeddings"] = tied
    if not tied:
        out.update({f"lm_head.{i}.weight": weight for i, weight in enumerate(heads)})
    if projected:
        ties = []
        for i in range(len(source.cutoffs) + 1):
            projection = take(f"crit.out_projs.{i}")
            embedding = out[f"model.embedding_projections.{0 if source.div_val == 1 else i}.weight"]
            ties.append(np.array_equal(projection, embedding))
            if not ties[-1]:
                out[f"lm_head.projections.{i}.weight"] = projection.T
        config["tie_projections"] = ties
    if source.cutoffs:
        out["lm_head.clusters.weight"] = take("crit.cluster_weight")
        out["lm_head.clusters.bias"] = take("crit.cluster_bias")
    if source.attn_type == 0:
        out["model.content_bias"], out["model.position_bias"] = take("r_w_bias"), take("r_r_bias")
    left.pop("pos_emb.inv_freq", None)  # a function of the width

    for n in range(source.n_layer):
        theirs, ours = f"layers.{n}.", f"model.layers.{n}."
        for name, matrix in _projections(source, take, theirs + "dec_attn.").items():
            out[f"{ours}attn.{name}_proj.weight"] = matrix
        out[ours + "attn.o_proj.weight"] = take(theirs + "dec_attn.o_net.weight")
        if source.proj_matrices:
            out[ours + "attn.feature_projection"] = source.proj_matrices[n].T
        for a, b in [("dec_attn", "attn_norm"), ("pos_ff", "mlp_norm")]:
            for part in ("weight", "bias"):
                out[f"{ours}{b}.{part}"] = take(f"{theirs}{a}.layer_norm.{part}")
        for a, b in [("CoreNet.0", "up_proj"), ("CoreNet.3", "down_proj")]:
            for part in ("weight", "bias"):
                out[f"{ours}mlp.{b}.{part}"] = take(f"{theirs}pos_ff.{a}.{part}")
    _refuse_unless(not left, f"tensors that are not understood: {', '.join(sorted(left)[:5])}")
    return config, out


# What Python's str.split() cuts at, and str.splitlines() does not need to know: lines end at \n, \r and \r\n only.
def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text.removesuffix("\n"))


def count_words(path: Path) -> list[str]:
    """The toolkit's vocabulary of a word-level `train.txt`: <eos>, then by count, ties by first occurrence."""
    counter: collections.Counter[str] = collections.Counter()
    for line in _lines(path.read_text(encoding="utf-8")):
        counter.update([*line.split(), "<eos>"])
    return ["<eos>"] + [word for word, _ in counter.most_common() if word != "<eos>"]


def read_symbols(path: Path) -> list[str]:
    """Symbols in the order of their ids: from the toolkit's `cache.pt`, a `train.txt`, or a list, one a line."""
    if path.suffix == ".pt":
        corpus = torch_pickle.load(path, MODULES)
        vocabulary = corpus.get("vocab") if isinstance(corpus, torch_pickle.Record) else None
        _refuse_unless(vocabulary is not None, f"{path}: no corpus of the toolkit")
        return list(vocabulary.get("idx2sym"))
    if path.name == "train.txt":
        return count_words(path)
    return path.read_text(encoding="utf-8").split("\n")[
        : -1 if path.read_text(encoding="utf-8").endswith("\n") else None
    ]


def _rules(symbols: list[str]) -> dict[str, Any]:
    if all(symbol.isdecimal() and int(symbol) < 256 for symbol in symbols):
        return {"kind": "character", "unk": None, "eos": None}
    for unk in ("<unk>", "<UNK>"):
        if unk in symbols:
            return {"kind": "word", "unk": unk, "eos": "<eos>" if "<eos>" in symbols else None}
    raise ImportRefusedError("the vocabulary has neither <unk> nor <UNK>: a word that it lacks would have no id")


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], symbols: list[str]) -> None:
    """Writes what the server loads."""
    _refuse_unless(
        len(symbols) == config["vocab_size"],
        f"the vocabulary has {len(symbols)} symbols, the model {config['vocab_size']}: they do not belong together",
    )
    rules = _rules(symbols)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    weights_file.write(
        folder / SINGLE,
        {name: weights_file.entry(np.asarray(values, "<f4"), "F32") for name, values in tensors.items()},
    )
    write_json(folder / "vocabulary.json", rules)
    (folder / "vocab.txt").write_text("".join(symbol + "\n" for symbol in symbols), encoding="utf-8")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="best_model.pt or latest_model.pt of a run, or a state_dict")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--vocab", type=Path, required=True, help="the data folder's cache.pt or train.txt, or a list, a symbol a line"
    )
    parser.add_argument("--log", type=Path, help="log.txt of the run; needed for a state_dict")
    parser.add_argument("--cutoffs", help="comma separated; for a state_dict of a data set other than wt103 and lm1b")
    parser.add_argument("--favor_seed", type=int, help="draw FAVOR+'s projections, which a state_dict lacks")
    args = parser.parse_args()
    try:
        loaded = torch_pickle.load(args.model, MODULES)
        if isinstance(loaded, torch_pickle.Record):
            source = from_module(loaded)
        elif isinstance(loaded, dict):
            _refuse_unless(args.log is not None, f"{args.model} is a state_dict: give the run's --log, too")
            cutoffs = None if args.cutoffs is None else [int(part) for part in args.cutoffs.split(",") if part]
            source = from_state_dict(loaded, read_log(args.log), cutoffs, args.favor_seed)
        else:
            raise ImportRefusedError(f"{args.model} holds neither a model nor a state_dict")
        config, tensors = convert(source)
        write_folder(args.out, config, tensors, read_symbols(args.vocab))
    except (ImportRefusedError, torch_pickle.RefusedPickleError, OSError) as error:
        sys.exit(f"import_lmtool: {error}")
    count = sum(values.size for values in tensors.values())
    print(
        f"{args.out}: attn_type {source.attn_type}, {count / 1e6:.2f} million parameters, "
        f"{config['vocab_size']} symbols"
    )


if __name__ == "__main__":
    main()
