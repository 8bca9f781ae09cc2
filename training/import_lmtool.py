"""Turns a checkpoint of the toolkit IDSIA/lmtool-fwp into a folder that Palimpsest serves.

    python -m training.import_lmtool best_model.pt --vocab data/wikitext-103/cache.pt --out models/delta-net

MODEL is what the toolkit saves: the whole module, which says all about itself. A state_dict works too, together with
the settings it was trained with: `--log log.txt`, which the toolkit writes beside it, or `--set name=value` for each of
the toolkit's flags. Neither torch nor the toolkit is needed, and nothing in the file is run (see torch_pickle.py).

VOCAB is one of
    cache.pt                       the corpus that the toolkit keeps in the data folder
    train.txt                      WikiText-103, counted as the toolkit does (--vocab-kind wt103)
    train.txt valid.txt test.txt   enwik8 as its script writes it, decimal values of bytes (--vocab-kind enwik8)
    a list                         one symbol a line, in the order of the ids (--vocab-kind list)

The folder has config.json, model.safetensors, vocab.txt and vocabulary.json. Tensors keep their values; rows of fused
projections are put in order, q, k and v each with its heads one after the other.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training import torch_pickle, weights_file
from training.checkpoint import SINGLE, write_json
from training.torch_pickle import Placeholder, Tensor

EPS = 1e-5


class ImportRefusedError(ValueError):
    """The checkpoint is one that cannot be brought over; the message says why and what would help."""


@dataclass(frozen=True)
class System:
    """What an attn_type of the toolkit computes, and where its projections are."""

    rule: str | None  # None: softmax attention
    feature_map: str = "identity"
    layout: str = "per_head"  # of q, k and v: "per_head" in one matrix, "blocks" in one matrix, "separate" matrices
    fused: str = "qkv_net"
    qk_norm: str = "none"
    attention_norm: str = "none"  # unless skipped
    may_skip: bool = True
    scaled_denominator: bool = False
    pre_norm: str = "pre_normed_residual"  # norm_placement under --pre_lnorm

    @property
    def delta(self) -> bool:
        """Whether it has a beta per head."""
        return self.rule == "delta"


def _quadratic(feature_map: str) -> System:
    return System(
        "sum", feature_map, "separate", attention_norm="output", may_skip=False, scaled_denominator=True,
        pre_norm="pre_raw_query",
    )  # fmt: skip


def _delta(feature_map: str, attention_norm: str, pre_norm: str = "pre_normed_residual") -> System:
    return System(
        "delta", feature_map, fused="qkvb_net", qk_norm="sum", attention_norm=attention_norm, pre_norm=pre_norm
    )


SYSTEMS = {
    0: System(None, layout="blocks", pre_norm="pre"),
    2: System(None, layout="separate", pre_norm="pre_raw_query"),
    4: _quadratic("elu1"),
    5: _quadratic("favor"),
    6: _quadratic("dpfp"),
    14: _delta("elu1", "none", "pre"),  # prototypes of 24 and 26
    16: _delta("dpfp", "none", "pre"),
    24: _delta("elu1", "output"),
    25: _delta("favor", "output"),
    26: _delta("dpfp", "output"),
    34: System("sum", "elu1", attention_norm="output"),
    35: System("sum", "favor", attention_norm="output"),
    36: System("sum", "dpfp", attention_norm="output"),
    44: _delta("elu1", "key_and_output"),
    45: _delta("favor", "key_and_output"),
    46: _delta("dpfp", "key_and_output"),
}

_RECURRENT = "it is one of the recurrent follow-ups (2106.06295), whose layers the server does not have"
_BROKEN = "it was never finished: it fails in every version of the toolkit"
REFUSED_TYPES = {
    1: "learned relative positions belong to no reported model, and the server does not have them",
    3: _BROKEN, 7: _BROKEN, 10: _BROKEN, 74: _BROKEN, 104: _BROKEN, 114: _BROKEN, 144: _BROKEN, 204: _BROKEN,
    924: _BROKEN,
    54: "Delta MLP writes a deep fast network, which the server does not have",
    64: "Delta Delta Net programs a second fast network, which the server does not have",
    80: "it is a plain RNN, without fast weights", 90: "it is a plain LSTM, without fast weights",
    124: _RECURRENT, 134: _RECURRENT, 224: _RECURRENT, 234: _RECURRENT, 244: _RECURRENT, 254: _RECURRENT,
    324: _RECURRENT, 934: _RECURRENT,
}  # fmt: skip


@dataclass
class Source:
    """A checkpoint as the toolkit sees it: its own names of settings and tensors."""

    settings: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(repr=False)

    def setting(self, name: str, default: Any = None) -> Any:
        """The value; ImportRefusedError if it is neither given nor has a default."""
        value = self.settings.get(name, default)
        if value is None:
            raise ImportRefusedError(f"'{name}' is not in the checkpoint: give --log log.txt or --set {name}=...")
        return value

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """The tensor, checked to be of this shape."""
        if name not in self.tensors:
            raise ImportRefusedError(f"the checkpoint has no tensor {name}, which attn_type and settings ask for")
        values = self.tensors[name]
        if values.shape != shape:
            raise ImportRefusedError(
                f"{name} has shape {list(values.shape)}, the settings ask for {list(shape)}; "
                "is a setting wrong, such as n_head, d_head or cutoffs?"
            )
        return values


# ---- reading checkpoints ----


def read_source(path: Path, settings: dict[str, Any]) -> Source:
    """Reads a saved module or a state_dict. `settings` are those of a log or of the command line."""
    saved = torch_pickle.load(path)
    if isinstance(saved, Placeholder) and hasattr(saved, "_modules"):
        return _read_module(saved, settings)
    if isinstance(saved, dict) and saved and all(isinstance(value, Tensor) for value in saved.values()):
        tensors = {str(name): value.numpy() for name, value in saved.items()}
        return Source(_settings_of_state_dict(settings), tensors)
    if isinstance(saved, dict) and "optimizer_state_dict" in saved:
        raise ImportRefusedError(f"{path} holds the optimizer; the model is in the file ..._model.pt beside it")
    raise ImportRefusedError(f"{path} holds neither a saved model nor a state_dict")


def _collect(module: Placeholder, prefix: str, tensors: dict[str, np.ndarray]) -> None:
    # proj_matrix is an attribute of the module and no parameter, so no state_dict has it.
    found = {"proj_matrix": module.__dict__.get("proj_matrix")}
    for group in ("_parameters", "_buffers"):
        found.update(module.__dict__.get(group, {}))
    for name, value in found.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value.numpy()
    for name, child in module.__dict__.get("_modules", {}).items():
        if isinstance(child, Placeholder):
            _collect(child, f"{prefix}{name}.", tensors)


def _read_module(model: Placeholder, overrides: dict[str, Any]) -> Source:
    later = {"tgt_len", "mem_len", "clamp_len"}  # what the toolkit's evaluation sets anew
    if wrong := sorted(set(overrides) - later):
        raise ImportRefusedError(
            f"the file is a whole module, which has its own {', '.join(wrong)}: only tgt_len, mem_len and clamp_len "
            "can be given besides"
        )
    settings = {name: value for name, value in model.__dict__.items() if not name.startswith("_")}
    if settings.get("sample_softmax", -1) > 0:
        raise ImportRefusedError("the model was trained with --sample_softmax: its output layer is another one")
    settings.update(_settings_of_layers(model))
    ends = _child(model, "word_emb"), _child(model, "crit")
    for name in ("cutoffs", "div_val", "d_proj"):
        values = [getattr(end, name, None) for end in ends]
        if values[0] != values[1]:
            raise ImportRefusedError(f"word_emb has {name} {values[0]}, crit {values[1]}: they must agree")
        settings[name] = values[0]
    settings["cutoffs"] = list(settings["cutoffs"])[:-1]  # the toolkit ends them with the vocabulary's size
    settings.update(overrides)
    tensors: dict[str, np.ndarray] = {}
    _collect(model, "", tensors)
    return Source(settings, tensors)


def _child(module: Placeholder, name: str) -> Placeholder:
    child = module.__dict__.get("_modules", {}).get(name)
    if not isinstance(child, Placeholder):
        raise ImportRefusedError(f"the saved {type(module).__name__} has no {name}: it is no model of the toolkit")
    return child


def _settings_of_layers(model: Placeholder) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    # Absent in the release of February 2021, whose 34 and 35 always normalise.
    defaults = {"use_sum_norm": True, "normalize_attn_scores": True, "eps": EPS}
    layers = _child(model, "layers").__dict__.get("_modules", {})
    for number, layer in layers.items():
        attention = _child(layer, "dec_attn")
        here = {
            name: getattr(attention, name, defaults.get(name))
            for name in ("pre_lnorm", "normalize_attn_scores", "use_sum_norm", "n_roll", "proj_dim", "scale", "eps")
        }
        here["remove_ff"] = not getattr(layer, "use_ff", True)
        if not here["remove_ff"] and bool(_child(layer, "pos_ff").__dict__.get("pre_lnorm")) != bool(here["pre_lnorm"]):
            raise ImportRefusedError(f"layer {number} has its norm before one half and after the other")
        for name, value in here.items():
            if settings.setdefault(name, value) != value:
                raise ImportRefusedError(f"layer {number} has {name} {value}, layer 0 {settings[name]}")
    return settings


def parse_log(text: str) -> dict[str, Any]:
    """The settings that a log of the toolkit lists: lines `    - name : value`."""
    settings = {}
    for line in text.splitlines():
        name, colon, value = line.removeprefix("    - ").partition(" : ")
        if colon and line.startswith("    - "):
            settings[name] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_TOOLKIT_CUTOFFS = {"wt103": [20000, 40000, 200000], "lm1b": [60000, 100000, 640000]}


def _settings_of_state_dict(given: dict[str, Any]) -> dict[str, Any]:
    settings = dict(given)
    settings["normalize_attn_scores"] = not given.get("skip_attn_normalization", False)
    settings.setdefault("use_sum_norm", False)
    settings["n_roll"] = given.get("dpfp_n_roll", 2)
    settings["proj_dim"] = given.get("performer_proj_dim", 16)
    settings.setdefault("eps", EPS)
    if "cutoffs" not in settings:
        settings["cutoffs"] = []
        if given.get("adaptive"):
            dataset = given.get("dataset", "wt103")
            if dataset not in _TOOLKIT_CUTOFFS:
                raise ImportRefusedError(f"no cutoffs are known for dataset {dataset}: give --set cutoffs=[...]")
            settings["cutoffs"] = _TOOLKIT_CUTOFFS[dataset]
    return settings


# ---- what the model is ----


@dataclass
class Model:
    """A checkpoint understood: config.json, and the tensors under Palimpsest's names."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict)  # of model.safetensors


def convert(source: Source, *, favor_seed: int | None = None) -> Model:
    """The model of a checkpoint, or ImportRefusedError."""
    system = _system(source)
    _refuse_options(source)
    layers = 1 + max((int(name.split(".")[1]) for name in source.tensors if name.startswith("layers.")), default=-1)
    if source.settings.get("n_layer", layers) != layers or layers == 0:
        raise ImportRefusedError(f"n_layer is {source.settings.get('n_layer')}, the checkpoint has {layers} layers")
    size, heads, head = (int(source.setting(name)) for name in ("d_model", "n_head", "d_head"))
    scale = source.settings.get("scale")
    if scale is not None and abs(scale * head**0.5 - 1) > 1e-6:
        raise ImportRefusedError(f"the output scale is {scale}, expected 1/sqrt(d_head)")
    if system.feature_map == "favor":
        _add_projections(source, layers, head, favor_seed)
    elif favor_seed is not None:
        raise ImportRefusedError("--favor-seed is given, but the model has no random projections")
    inner = len(source.tensors.get("layers.0.pos_ff.CoreNet.0.bias", ()))
    ends_config, ends = _ends(source, size)
    segment = int(source.setting("tgt_len"))
    config: dict[str, Any] = {
        "model_type": "fwp",
        "vocab_size": ends_config.pop("vocab_size"),
        "hidden_size": size,
        **ends_config,
        "num_hidden_layers": layers,
        "num_heads": heads,
        "head_dim": head,
        "intermediate_size": inner,
        "norm_placement": system.pre_norm if source.setting("pre_lnorm", False) else "post",
        **_positions(source, system, segment),
        "mixer": "softmax" if system.rule is None else "fast_weight",
        **_mixer_config(source, system),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    tensors = dict(ends)
    if config["positions"] == "relative":
        tensors["model.content_bias"] = source.tensor("r_w_bias", heads, head)
        tensors["model.position_bias"] = source.tensor("r_r_bias", heads, head)
    for number in range(layers):
        tensors.update(_layer(source, system, number, size, heads, head, inner))
    return Model(config, tensors, {} if favor_seed is None else {"favor_seed": str(favor_seed)})


def _system(source: Source) -> System:
    kind = source.setting("attn_type")
    if kind in SYSTEMS:
        return SYSTEMS[kind]
    why = REFUSED_TYPES.get(kind, "the toolkit has no such type")
    raise ImportRefusedError(
        f"attn_type {kind} cannot be imported: {why}. Supported are {', '.join(map(str, SYSTEMS))}"
    )


def _refuse_options(source: Source) -> None:
    size = source.setting("d_model")
    reasons = {
        "same_length": "every token would see equally many before it, which the server's windows do not do",
        "remove_ff": "the server's layers always have their feed-forward half",
        "remove_lnorm": "the server's layers always have their norms",
        "remove_res": "the server's layers always have their residual connections",
        "remove_out_proj": "the server's layers always have their output projection",
    }
    for name, why in reasons.items():
        if source.settings.get(name):
            raise ImportRefusedError(f"the model was trained with --{name}: {why}")
    if source.settings.get("d_res") not in (None, size):
        raise ImportRefusedError(f"d_res is {source.settings['d_res']}, but only d_res = d_model ({size}) is served")
    if source.settings.get("d_proj") not in (None, size):
        raise ImportRefusedError(f"the embedding gives {source.settings['d_proj']} numbers, d_model is {size}")
    if source.settings.get("ext_len", 0) != 0:
        raise ImportRefusedError(f"ext_len is {source.settings['ext_len']}: the server keeps no extended context")
    if source.settings.get("mem_len", 0) != 0 and source.setting("attn_type") != 0:
        raise ImportRefusedError("mem_len is only served with attn_type 0 (Transformer-XL); --set mem_len=0 if unused")
    if abs(source.settings.get("eps", EPS) - EPS) > 1e-9:
        raise ImportRefusedError(f"eps is {source.settings['eps']}, expected {EPS}")
    frequencies = source.tensors.get("pos_emb.inv_freq")
    expected = 10000.0 ** (-np.arange(0, size, 2) / size)
    if frequencies is not None and not np.allclose(frequencies, expected, rtol=1e-5, atol=0):
        raise ImportRefusedError("pos_emb.inv_freq is not 10000^(-2j/d_model): positions would differ")


def _positions(source: Source, system: System, segment: int) -> dict[str, Any]:
    relative = source.setting("attn_type") == 0
    none = not relative and source.setting("no_pos", False)
    clamp = int(source.settings.get("clamp_len", -1))
    if not relative and not none and 0 < clamp < segment - 1:
        raise ImportRefusedError(f"clamp_len {clamp} is less than tgt_len - 1: only Transformer-XL is served so")
    return {
        "positions": "relative" if relative else "none" if none else "sinusoidal",
        # Without positions a fast-weight model does not know of segments.
        "segment_length": 0 if none and system.rule else segment,
        "memory_length": int(source.setting("mem_len", 0)) if relative else 0,
        "clamp_length": clamp if relative and clamp > 0 else -1,
    }


def _mixer_config(source: Source, system: System) -> dict[str, Any]:
    if system.rule is None:
        return {}
    skip = system.may_skip and not source.setting("normalize_attn_scores")
    attention_norm = "none" if skip else system.attention_norm
    config: dict[str, Any] = {"update_rule": system.rule, "feature_map": system.feature_map}
    if system.feature_map == "dpfp":
        config["dpfp_nu"] = int(source.setting("n_roll"))
    if system.feature_map == "favor":
        config["favor_features"] = int(source.tensors["layers.0.dec_attn.proj_matrix"].shape[1])
    sum_norm = system.fused == "qkv_net" and system.layout == "per_head" and source.setting("use_sum_norm")
    config["qk_norm"] = "sum" if sum_norm else system.qk_norm
    config["attention_norm"] = attention_norm
    config["scaled_denominator"] = system.scaled_denominator
    return config


def _add_projections(source: Source, layers: int, head: int, seed: int | None) -> None:
    names = [f"layers.{number}.dec_attn.proj_matrix" for number in range(layers)]
    missing = [name for name in names if name not in source.tensors]
    if missing and seed is None:
        raise ImportRefusedError(
            "FAVOR+'s random projections (proj_matrix) are not in a state_dict. Import the whole module, which has "
            "them, or give --favor-seed N to draw others: the model then gives somewhat other probabilities"
        )
    if not missing and seed is not None:
        raise ImportRefusedError("--favor-seed is given, but the checkpoint has the projections it was trained with")
    generator = np.random.default_rng(seed)
    for name in missing:
        source.tensors[name] = draw_projection(generator, head, int(source.setting("proj_dim")))


def draw_projection(generator: np.random.Generator, head: int, count: int) -> np.ndarray:
    """A projection [head, count] as the toolkit draws it: orthogonal rows in blocks, of Gaussian lengths."""
    blocks = []
    for _ in range(-(-head // count)):
        q, _ = np.linalg.qr(generator.standard_normal((count, count)))
        blocks.append(q.T)
    rows = np.concatenate(blocks)[:head]
    lengths = np.linalg.norm(generator.standard_normal((head, count)), axis=1)
    return (lengths[:, None] * rows).astype(np.float32)


# ---- tensors ----


def _ends(source: Source, size: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Embedding and output layer: their keys of the config, and their tensors."""
    div_val = int(source.setting("div_val", 1))
    cutoffs = [int(cutoff) for cutoff in source.setting("cutoffs", [])]
    tables = _numbered(source, "word_emb.emb_layers.{}.weight")
    vocabulary = sum(len(table) for table in tables)
    if not tables or any(b <= a for a, b in zip([0, *cutoffs], [*cutoffs, vocabulary], strict=True)):
        raise ImportRefusedError(f"cutoffs are {cutoffs}, expected ascending ids below n_token, which is {vocabulary}")
    embed = tables[0].shape[1]
    limits = [0, *cutoffs, vocabulary]
    clusters = len(limits) - 1
    widths = [embed // div_val**i for i in range(clusters)]
    parts = [vocabulary] if div_val == 1 else [b - a for a, b in itertools.pairwise(limits)]
    tensors: dict[str, np.ndarray] = {}

    heads = _numbered(source, "crit.out_layers.{}.weight")
    tied = all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(tables, heads, strict=False))
    for i, rows in enumerate(parts):
        tensors[f"model.embeddings.{i}.weight"] = source.tensor(f"word_emb.emb_layers.{i}.weight", rows, widths[i])
        head = source.tensor(f"crit.out_layers.{i}.weight", rows, widths[i])
        if not tied:
            tensors[f"lm_head.{i}.weight"] = head
        tensors[f"lm_head.{i}.bias"] = source.tensor(f"crit.out_layers.{i}.bias", rows)

    projected = div_val > 1 or embed != size
    tied_projections = [False] * clusters
    if projected:
        for i in range(len(parts)):
            width = widths[i] if div_val > 1 else embed
            tensors[f"model.embedding_projections.{i}.weight"] = source.tensor(f"word_emb.emb_projs.{i}", size, width)
        for i in range(clusters):
            width = widths[i] if div_val > 1 else embed
            projection = source.tensor(f"crit.out_projs.{i}", size, width)
            other = tensors[f"model.embedding_projections.{i if div_val > 1 else 0}.weight"]
            tied_projections[i] = bool(np.array_equal(projection, other))
            if not tied_projections[i]:
                tensors[f"lm_head.projections.{i}.weight"] = projection.T
    if clusters > 1:
        tensors["lm_head.clusters.weight"] = source.tensor("crit.cluster_weight", clusters - 1, embed)
        tensors["lm_head.clusters.bias"] = source.tensor("crit.cluster_bias", clusters - 1)
    elif "crit.cluster_weight" in source.tensors:
        count = len(source.tensors["crit.cluster_weight"])
        raise ImportRefusedError(
            f"the output layer has {count} clusters, but no cutoffs are given: --set cutoffs=[...]"
        )
    config: dict[str, Any] = {
        "vocab_size": vocabulary,
        "embedding_size": embed,
        "cutoffs": cutoffs,
        "div_val": div_val,
        "tie_word_embeddings": tied,
    }
    if any(tied_projections):
        config["tie_projections"] = tied_projections
    return config, tensors


def _numbered(source: Source, pattern: str) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    while (name := pattern.format(len(found))) in source.tensors:
        found.append(source.tensors[name])
    return found


def _layer(
    source: Source, system: System, number: int, size: int, heads: int, head: int, inner: int
) -> dict[str, np.ndarray]:
    theirs, ours = f"layers.{number}.", f"model.layers.{number}."
    attention = f"{theirs}dec_attn."
    width = heads * head
    tensors = {f"{ours}attn.{name}.weight": value for name, value in _qkv(source, system, attention, size, heads, head)}
    tensors[f"{ours}attn.o_proj.weight"] = source.tensor(f"{attention}o_net.weight", size, width)
    if system.feature_map == "favor":
        name = f"{attention}proj_matrix"
        count = source.tensors[name].shape[-1]
        tensors[f"{ours}attn.feature_projection"] = source.tensor(name, head, count).T
    if system.layout == "blocks":
        tensors[f"{ours}attn.r_proj.weight"] = source.tensor(f"{attention}r_net.weight", width, size)
    for name, norm in (("attn_norm", f"{attention}layer_norm"), ("mlp_norm", f"{theirs}pos_ff.layer_norm")):
        for part in ("weight", "bias"):
            tensors[f"{ours}{name}.{part}"] = source.tensor(f"{norm}.{part}", size)
    core = f"{theirs}pos_ff.CoreNet."
    tensors[f"{ours}mlp.up_proj.weight"] = source.tensor(f"{core}0.weight", inner, size)
    tensors[f"{ours}mlp.up_proj.bias"] = source.tensor(f"{core}0.bias", inner)
    tensors[f"{ours}mlp.down_proj.weight"] = source.tensor(f"{core}3.weight", size, inner)
    tensors[f"{ours}mlp.down_proj.bias"] = source.tensor(f"{core}3.bias", size)
    return tensors


def _qkv(
    source: Source, system: System, attention: str, size: int, heads: int, head: int
) -> Iterable[tuple[str, np.ndarray]]:
    width = heads * head
    names = ("q_proj", "k_proj", "v_proj")
    if system.layout == "separate":
        key_value = source.tensor(f"{attention}kv_net.weight", 2 * width, size)
        query = source.tensor(f"{attention}q_net.weight", width, size)
        return zip(names, (query, key_value[:width], key_value[width:]), strict=True)
    per_head = 3 * head + system.delta
    fused = source.tensor(f"{attention}{system.fused}.weight", heads * per_head, size)
    if system.layout == "blocks":
        return zip(names, np.split(fused, 3), strict=True)
    by_head = fused.reshape(heads, per_head, size)
    parts = [(name, by_head[:, i * head : (i + 1) * head].reshape(width, size)) for i, name in enumerate(names)]
    return [*parts, ("b_proj", by_head[:, 3 * head])] if system.delta else parts


# ---- vocabularies ----


@dataclass
class Vocabulary:
    """Symbols in the order of their ids; `kind` is "word" or "character"."""

    kind: str
    symbols: list[str] = field(repr=False)

    def rules(self) -> dict[str, Any]:
        """vocabulary.json."""
        words = self.kind == "word"
        special = {name: f"<{name}>" if words and f"<{name}>" in self.symbols else None for name in ("unk", "eos")}
        return {"kind": self.kind, **special, "lowercase": False}


def read_vocabulary(paths: list[Path], kind: str, size: int) -> Vocabulary:
    """Reads the files of --vocab; raises ImportRefusedError unless they give `size` symbols."""
    if kind == "auto":
        kind = _guess(paths, size)
    if kind == "cache":
        vocabulary = _from_corpus(paths[0])
    elif kind == "list":
        symbols = _lines(paths[0])
        if symbols and not symbols[-1]:
            symbols.pop()
        vocabulary = Vocabulary("character" if all(map(_is_byte, symbols)) else "word", symbols)
    else:
        vocabulary = _count(paths, characters=kind == "enwik8")
    names = ", ".join(map(str, paths))
    if len(vocabulary.symbols) != size:
        raise ImportRefusedError(
            f"{names}: gives {len(vocabulary.symbols)} symbols, the model has {size}. It must be the vocabulary of the "
            "training data; with text files, see also --vocab-kind"
        )
    if len(set(vocabulary.symbols)) != size or any(symbol.split() != [symbol] for symbol in vocabulary.symbols):
        raise ImportRefusedError(f"{names}: a symbol is there twice, is empty or has white space in it")
    if vocabulary.kind == "character" and not all(map(_is_byte, vocabulary.symbols)):
        wrong = next(symbol for symbol in vocabulary.symbols if not _is_byte(symbol))
        raise ImportRefusedError(f"{names}: {wrong!r} is no decimal value of a byte, which characters must be")
    return vocabulary


def _guess(paths: list[Path], size: int) -> str:
    with paths[0].open("rb") as file:
        start = file.read(2)
    if start in (b"PK", b"\x80\x02"):
        return "cache"
    if len(paths) == 1:
        lines = _lines(paths[0])
        if len(lines) - (not lines[-1]) == size and not any(len(line.split()) > 1 for line in lines):
            return "list"
        return "wt103"
    return "enwik8"


def _is_byte(symbol: str) -> bool:
    return symbol.isascii() and symbol.isdecimal() and str(int(symbol)) == symbol and int(symbol) < 256


def _lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:  # \n, \r and \r\n end lines, as for the toolkit
        return file.read().split("\n")


def _count(paths: list[Path], *, characters: bool) -> Vocabulary:
    """As the toolkit: most frequent first, ties by first occurrence; words have <eos> in front."""
    counts: Counter[str] = Counter()
    for path in paths if characters else paths[:1]:
        for line in _lines(path):
            counts.update(line.split())
    symbols = [symbol for symbol, _ in counts.most_common()]
    if characters:
        return Vocabulary("character", symbols)
    return Vocabulary("word", ["<eos>", *(symbol for symbol in symbols if symbol != "<eos>")])


def _from_corpus(path: Path) -> Vocabulary:
    corpus = torch_pickle.load(path)
    vocabulary = getattr(corpus, "vocab", None)
    symbols = getattr(vocabulary, "idx2sym", None)
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise ImportRefusedError(f"{path}: holds no corpus of the toolkit")
    dataset = getattr(corpus, "dataset", None)
    kinds = {"wt103": "word", "wt2": "word", "enwik8": "character"}
    if dataset not in kinds:
        raise ImportRefusedError(
            f"{path}: is the corpus of {dataset}; the server knows how to cut texts for {', '.join(kinds)}"
        )
    return Vocabulary(kinds[dataset], symbols)


# ---- the folder ----


def write_folder(folder: Path, model: Model, vocabulary: Vocabulary | None) -> None:
    """Writes all files of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model.config)
    entries = {name: weights_file.entry(np.asarray(values, "<f4"), "F32") for name, values in model.tensors.items()}
    weights_file.write(folder / SINGLE, entries, model.metadata)
    if vocabulary is not None:
        with (folder / "vocab.txt").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{symbol}\n" for symbol in vocabulary.symbols)
        write_json(folder / "vocabulary.json", vocabulary.rules())


def _parse_settings(log: Path | None, given: list[str]) -> dict[str, Any]:
    settings = parse_log(log.read_text(encoding="utf-8")) if log else {}
    if log and "attn_type" not in settings:
        raise ImportRefusedError(f"{log}: lists no settings, which are lines like '    - attn_type : 24'")
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise ImportRefusedError(f"--set {item}: expected name=value, such as attn_type=24")
        settings[name.removeprefix("--")] = _value(value)
    return settings


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.pt", help="best_model.pt of a run, or a state_dict")
    parser.add_argument("--vocab", type=Path, nargs="+", required=True, help="the vocabulary, see above")
    parser.add_argument("--vocab-kind", choices=("auto", "cache", "wt103", "enwik8", "list"), default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--log", type=Path, help="log.txt of the run, for a state_dict")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="a setting, named as the toolkit's flag: for a state_dict all that differ from the toolkit's defaults, "
        "for a whole module tgt_len, mem_len and clamp_len; use_sum_norm=True for types 34 and 35 of February 2021",
    )  # fmt: skip
    parser.add_argument(
        "--favor-seed", type=int, metavar="N",
        help="draw FAVOR+'s projections, which a state_dict lacks; the same N gives the same model. "
        "model.safetensors keeps N in its metadata",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    try:
        source = read_source(args.model, _parse_settings(args.log, args.set))
        model = convert(source, favor_seed=args.favor_seed)
        vocabulary = read_vocabulary(args.vocab, args.vocab_kind, model.config["vocab_size"])
        write_folder(args.out, model, vocabulary)
    except (ValueError, OSError) as why:
        print(f"import_lmtool: {why}", file=sys.stderr)
        return 1
    if vocabulary.kind == "word" and vocabulary.rules()["unk"] is None:
        print("import_lmtool: the vocabulary has no <unk>: name in vocabulary.json what stands for unknown words")
    parameters = sum(values.size for values in model.tensors.values())
    print(f"{args.out}: attn_type {source.settings['attn_type']}, {parameters:,} parameters, {vocabulary.kind}s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
