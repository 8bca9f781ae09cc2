"""The importer: tensors land where they belong, vocabularies in their order, nothing in a file is run or guessed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training import torch_pickle, weights_file
from training.fwp_reference import Model
from training.import_lmtool import (
    REFUSED_TYPES,
    SYSTEMS,
    ImportRefusedError,
    convert,
    main,
    parse_log,
    read_source,
    read_vocabulary,
    write_folder,
)
from training.torch_pickle import UnsafePickleError

REPOSITORY = Path(__file__).parent.parent
GOLDENS = sorted(path.parent for path in (REPOSITORY / "tests" / "golden_paper").glob("*/golden.safetensors"))
D, H, HEAD, F, M = 12, 2, 3, 10, 4  # H * HEAD is not D
CUTOFFS = [4, 7]
V = 11


class _Module(nn.Module):
    """Carries parameters and attributes, as every module of the toolkit does; never called."""

    def __init__(self, **members: Any) -> None:
        super().__init__()
        for name, value in members.items():
            setattr(self, name, value)


CLASSES = {
    "model_main": ("MemTransformerLM", "AdaptiveEmbedding", "DecoderLayer", "PerformerDecoderLayer"),
    "utils.model_utils": ("PositionwiseFF", "PositionalEmbedding"),
    "utils.proj_adaptive_softmax": ("ProjectedAdaptiveLogSoftmax",),
    "utils.cuda_fast_weight_layer": ("Attention",),
    "data_utils": ("Corpus",),
    "utils.vocabulary": ("Vocab",),
}


@pytest.fixture(autouse=True)
def toolkit(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules under the toolkit's names, so that torch.save writes what the toolkit's would."""
    classes: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "utils", types.ModuleType("utils"))
    for module_name, names in CLASSES.items():
        module = types.ModuleType(module_name)
        for name in names:
            base = object if name in ("Corpus", "Vocab") else _Module
            classes[name] = type(name, (base,), {"__module__": module_name})
            setattr(module, name, classes[name])
        monkeypatch.setitem(sys.modules, module_name, module)
    return classes


def fused_rows(attn_type: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of the projections of q, k, v and beta."""
    width = H * HEAD
    if attn_type in (2, 4, 5, 6):
        return {"q_net": (width, D), "kv_net": (2 * width, D)}
    if attn_type == 0:
        return {"qkv_net": (3 * width, D), "r_net": (width, D)}
    return {"qkv_net": (3 * width, D)} if attn_type in (34, 35, 36) else {"qkvb_net": (H * (3 * HEAD + 1), D)}


def toolkit_model(
    toolkit: dict[str, Any], attn_type: int, *, div_val: int = 1, embed: int = D, tied: bool = True, **options: Any
) -> nn.Module:
    """A model of the toolkit with random weights, as far as a file shows it."""
    torch.manual_seed(attn_type)

    def linear(shape: tuple[int, int], bias: bool = False) -> nn.Linear:
        return nn.Linear(shape[1], shape[0], bias=bias)

    limits = [0, *CUTOFFS, V]
    parts = [(V, embed)] if div_val == 1 else [(limits[i + 1] - limits[i], embed // div_val**i) for i in range(3)]
    tables = nn.ModuleList(nn.Embedding(*part) for part in parts)
    outputs = nn.ModuleList(linear(part, bias=True) for part in parts)
    projected = div_val > 1 or embed != D
    emb_projs = [nn.Parameter(torch.randn(D, width)) for _, width in parts] if projected else []
    out_projs = [nn.Parameter(torch.randn(D, embed // div_val**i)) for i in range(3)] if projected else []
    if tied:
        for table, output in zip(tables, outputs, strict=True):
            output.weight = table.weight
        for i in (1, 2) if projected else ():
            out_projs[i] = emb_projs[i if div_val > 1 else 0]
    attention_options = {
        "pre_lnorm": options.get("pre_lnorm", False),
        "scale": HEAD**-0.5,
        **{name: options[name] for name in ("use_sum_norm", "eps", "normalize_attn_scores") if name in options},
    }
    if attn_type in (24, 25, 26, 34, 35, 44, 45, 46):
        attention_options.setdefault("normalize_attn_scores", True)
    if attn_type % 10 == 6:
        attention_options["n_roll"] = 2
    layers = nn.ModuleList()
    for _ in range(2):
        attention = toolkit["Attention"](
            **{name: linear(shape) for name, shape in fused_rows(attn_type).items()},
            o_net=linear((D, H * HEAD)), layer_norm=nn.LayerNorm(D), drop=nn.Dropout(0.1), **attention_options,
        )  # fmt: skip
        if attn_type % 10 == 5:
            attention.proj_matrix = torch.randn(HEAD, M)
        core = nn.Sequential(linear((F, D), True), nn.ReLU(inplace=True), nn.Dropout(), linear((D, F), True))
        pre_lnorm = attention_options["pre_lnorm"]
        feed_forward = toolkit["PositionwiseFF"](CoreNet=core, layer_norm=nn.LayerNorm(D), pre_lnorm=pre_lnorm)
        layers.append(toolkit["DecoderLayer"](dec_attn=attention, pos_ff=feed_forward))
    pos_emb = toolkit["PositionalEmbedding"]()
    pos_emb.register_buffer("inv_freq", 1 / (10000 ** (torch.arange(0.0, D, 2.0) / D)))
    ends = {"cutoffs": [*CUTOFFS, V], "div_val": div_val, "d_proj": D}
    biases = {name: nn.Parameter(torch.randn(H, HEAD)) for name in ("r_w_bias", "r_r_bias") if attn_type == 0}
    return toolkit["MemTransformerLM"](
        word_emb=toolkit["AdaptiveEmbedding"](emb_layers=tables, emb_projs=nn.ParameterList(emb_projs), **ends),
        crit=toolkit["ProjectedAdaptiveLogSoftmax"](
            out_layers=outputs, out_projs=nn.ParameterList(out_projs),
            cluster_weight=nn.Parameter(torch.randn(2, embed)), cluster_bias=nn.Parameter(torch.randn(2)), **ends,
        ),
        layers=layers, pos_emb=pos_emb, attn_type=attn_type, n_layer=2, n_head=H, d_model=D, d_head=HEAD, d_embed=embed,
        n_token=V, no_pos=options.get("no_pos", False), clamp_len=options.get("clamp_len", -1),
        same_length=options.get("same_length", False), tgt_len=16, mem_len=options.get("mem_len", 0),
        ext_len=options.get("ext_len", 0), sample_softmax=options.get("sample_softmax", -1),
        d_res=options.get("d_res", D), **biases,
    )  # fmt: skip


def saved(model: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(model, path, _use_new_zipfile_serialization=not legacy)
    return path


def settings_of(model: nn.Module) -> dict[str, Any]:
    """What the toolkit's log says of it."""
    names = ("attn_type", "n_layer", "n_head", "d_model", "d_head", "no_pos", "tgt_len", "mem_len", "clamp_len")
    attention = model.layers[0].dec_attn
    return {
        **{name: getattr(model, name) for name in names},
        "pre_lnorm": attention.pre_lnorm,
        "skip_attn_normalization": not getattr(attention, "normalize_attn_scores", True),
        "dpfp_n_roll": 2, "performer_proj_dim": M, "div_val": model.crit.div_val, "cutoffs": CUTOFFS,
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attn_type", [0, 2, 4, 5, 6, 24, 25, 26, 34, 35, 44, 45, 46])
def test_each_type_is_read_and_can_be_evaluated(toolkit, tmp_path, attn_type, legacy) -> None:
    path = saved(toolkit_model(toolkit, attn_type), tmp_path / "best_model.pt", legacy=legacy)
    vocabulary = tmp_path / "list.txt"
    vocabulary.write_text("".join(f"w{i}\n" for i in range(V)))
    assert main([str(path), "--vocab", str(vocabulary), "--out", str(tmp_path / "out")]) == 0
    log_probs = Model(tmp_path / "out").run(np.arange(9) % V)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-9)
    assert (tmp_path / "out" / "vocab.txt").read_text().splitlines()[3] == "w3"


@pytest.mark.parametrize("attn_type", [0, 4, 24, 34])
def test_rows_of_fused_projections_are_put_in_order(toolkit, tmp_path, attn_type) -> None:
    model = toolkit_model(toolkit, attn_type)
    attention = model.layers[1].dec_attn
    with torch.no_grad():
        for name, shape in fused_rows(attn_type).items():
            getattr(attention, name).weight.copy_(torch.arange(shape[0])[:, None].expand(shape))
    tensors = convert(read_source(saved(model, tmp_path / "m.pt"), {})).tensors
    rows = {n: tensors[f"model.layers.1.attn.{n}_proj.weight"][:, 0].astype(int).tolist() for n in "qkv"}
    expected = {  # two heads of three
        0: {"q": [0, 1, 2, 3, 4, 5], "k": [6, 7, 8, 9, 10, 11], "v": [12, 13, 14, 15, 16, 17]},
        4: {"q": [0, 1, 2, 3, 4, 5], "k": [0, 1, 2, 3, 4, 5], "v": [6, 7, 8, 9, 10, 11]},
        24: {"q": [0, 1, 2, 10, 11, 12], "k": [3, 4, 5, 13, 14, 15], "v": [6, 7, 8, 16, 17, 18]},
        34: {"q": [0, 1, 2, 9, 10, 11], "k": [3, 4, 5, 12, 13, 14], "v": [6, 7, 8, 15, 16, 17]},
    }
    assert rows == expected[attn_type]
    if attn_type == 24:
        assert tensors["model.layers.1.attn.b_proj.weight"][:, 0].tolist() == [9, 19]


@pytest.mark.parametrize(("div_val", "embed"), [(1, D), (1, 8), (2, 8)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_state_dict_with_its_log_gives_the_same_model(toolkit, tmp_path, div_val, embed, tied) -> None:
    model = toolkit_model(toolkit, 26, div_val=div_val, embed=embed, tied=tied, pre_lnorm=True, no_pos=True)
    whole = convert(read_source(saved(model, tmp_path / "whole.pt"), {}))
    settings = settings_of(model)
    log = "\n".join(["=" * 9, *(f"    - {name} : {value}" for name, value in settings.items()), "#params = 5"])
    assert parse_log(log) == settings
    bare = convert(read_source(saved(model.state_dict(), tmp_path / "bare.pt"), parse_log(log)))
    assert bare.config == whole.config
    assert bare.tensors.keys() == whole.tensors.keys()
    for name, values in whole.tensors.items():
        assert np.array_equal(bare.tensors[name], values), name
    assert whole.config["tie_word_embeddings"] is tied
    projected = div_val > 1 or embed != D
    assert whole.config.get("tie_projections") == ([False, True, True] if projected and tied else None)
    assert ("lm_head.projections.2.weight" in whole.tensors) == (projected and not tied)
    assert (whole.config["norm_placement"], whole.config["segment_length"]) == ("pre_normed_residual", 0)


def test_the_matrices_of_the_ends_are_turned_as_the_server_reads_them(toolkit, tmp_path) -> None:
    model = toolkit_model(toolkit, 24, div_val=2, embed=8, tied=False)
    tensors = convert(read_source(saved(model, tmp_path / "m.pt"), {})).tensors
    projection = model.crit.out_projs[1].detach().numpy()
    assert np.array_equal(tensors["lm_head.projections.1.weight"], projection.T)
    assert np.array_equal(tensors["model.embedding_projections.2.weight"], model.word_emb.emb_projs[2].detach().numpy())
    assert tensors["lm_head.2.weight"].shape == (V - CUTOFFS[1], 2)


def test_projections_of_favor_are_transposed_and_never_invented(toolkit, tmp_path) -> None:
    model = toolkit_model(toolkit, 25)
    whole = convert(read_source(saved(model, tmp_path / "m.pt"), {}))
    theirs = model.layers[1].dec_attn.proj_matrix.numpy()
    assert np.array_equal(whole.tensors["model.layers.1.attn.feature_projection"], theirs.T)
    assert whole.config["favor_features"] == M
    bare = saved(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ImportRefusedError, match="favor-seed"):
        convert(read_source(bare, settings_of(model)))
    first, again, other = (convert(read_source(bare, settings_of(model)), favor_seed=seed) for seed in (1, 1, 2))
    name = "model.layers.0.attn.feature_projection"
    assert np.array_equal(first.tensors[name], again.tensors[name])
    assert not np.array_equal(first.tensors[name], other.tensors[name])
    write_folder(tmp_path / "out", other, None)
    with (tmp_path / "out" / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt", "favor_seed": "2"}
    with pytest.raises(ImportRefusedError, match="has the projections it was trained with"):
        convert(read_source(tmp_path / "m.pt", {}), favor_seed=1)


@pytest.mark.parametrize(
    ("attn_type", "options", "expected"),
    [
        (24, {}, ("sum", "output", False)),
        (24, {"normalize_attn_scores": False}, ("sum", "none", False)),
        (44, {}, ("sum", "key_and_output", False)),
        (46, {"normalize_attn_scores": False}, ("sum", "none", False)),
        (34, {"use_sum_norm": False}, ("none", "output", False)),
        (34, {}, ("sum", "output", False)),  # February 2021: the attribute is not there
        (35, {"use_sum_norm": True, "normalize_attn_scores": False}, ("sum", "none", False)),
        (4, {}, ("none", "output", True)),
    ],
)
def test_normalisations_are_those_of_the_object(toolkit, tmp_path, attn_type, options, expected) -> None:
    config = convert(read_source(saved(toolkit_model(toolkit, attn_type, **options), tmp_path / "m.pt"), {})).config
    assert (config["qk_norm"], config["attention_norm"], config["scaled_denominator"]) == expected


def test_type_36_and_the_prototypes_14_and_16_are_read_by_their_definition(toolkit, tmp_path) -> None:
    model = toolkit_model(toolkit, 36, use_sum_norm=False)
    config = convert(read_source(saved(model, tmp_path / "m.pt"), {})).config
    assert (config["update_rule"], config["feature_map"], config["scaled_denominator"]) == ("sum", "dpfp", False)
    for attn_type, feature_map in ((14, "elu1"), (16, "dpfp")):
        config = convert(read_source(saved(toolkit_model(toolkit, attn_type), tmp_path / "m.pt"), {})).config
        assert (config["feature_map"], config["attention_norm"]) == (feature_map, "none")


@pytest.mark.parametrize(
    ("attn_type", "expected"), [(0, "pre"), (2, "pre_raw_query"), (6, "pre_raw_query"), (45, "pre_normed_residual")]
)
def test_pre_norm_is_what_each_type_makes_of_it(toolkit, tmp_path, attn_type, expected) -> None:
    path = saved(toolkit_model(toolkit, attn_type, pre_lnorm=True), tmp_path / "m.pt")
    assert convert(read_source(path, {})).config["norm_placement"] == expected


def test_transformer_xl_takes_the_lengths_of_the_evaluation(toolkit, tmp_path) -> None:
    path = saved(toolkit_model(toolkit, 0, mem_len=5, clamp_len=9), tmp_path / "m.pt")
    config = convert(read_source(path, {})).config
    assert [config[f"{name}_length"] for name in ("segment", "memory", "clamp")] == [16, 5, 9]
    config = convert(read_source(path, {"tgt_len": 8, "mem_len": 20, "clamp_len": 12})).config
    assert [config[f"{name}_length"] for name in ("segment", "memory", "clamp")] == [8, 20, 12]
    with pytest.raises(ImportRefusedError, match="its own n_head"):
        read_source(path, {"n_head": 4})


@pytest.mark.parametrize("attn_type", [*REFUSED_TYPES, 99])
def test_types_that_cannot_be_served_are_refused_with_the_reason(toolkit, tmp_path, attn_type) -> None:
    model = toolkit_model(toolkit, 24)
    model.attn_type = attn_type
    reason = REFUSED_TYPES.get(attn_type, "no such type")
    with pytest.raises(ImportRefusedError, match=f"attn_type {attn_type} .*") as refusal:
        convert(read_source(saved(model, tmp_path / "m.pt"), {}))
    assert reason in str(refusal.value)
    assert not REFUSED_TYPES.keys() & SYSTEMS.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same_length": True}, "--same_length"),
        ({"ext_len": 3}, "ext_len is 3"),
        ({"mem_len": 3}, "mem_len is only served with attn_type 0"),
        ({"d_res": 2 * D}, "d_res is 24"),
        ({"sample_softmax": 9}, "--sample_softmax"),
        ({"eps": 1e-3}, "eps is 0.001"),
        ({"clamp_len": 9}, "clamp_len 9 is less than"),
    ],
)
def test_options_that_the_server_cannot_express_are_refused(toolkit, tmp_path, options, message) -> None:
    path = saved(toolkit_model(toolkit, 24, **options), tmp_path / "m.pt")
    with pytest.raises(ImportRefusedError, match=message):
        convert(read_source(path, {}))


def test_layers_that_differ_or_lack_a_half_are_refused(toolkit, tmp_path) -> None:
    model = toolkit_model(toolkit, 24)
    model.layers[1].dec_attn.normalize_attn_scores = False
    with pytest.raises(ImportRefusedError, match="layer 1 has normalize_attn_scores False, layer 0 True"):
        read_source(saved(model, tmp_path / "m.pt"), {})
    model = toolkit_model(toolkit, 24)
    for layer in model.layers:
        layer.use_ff = False
    with pytest.raises(ImportRefusedError, match="--remove_ff"):
        convert(read_source(saved(model, tmp_path / "m.pt"), {}))


@pytest.mark.parametrize("option", ["remove_ff", "remove_lnorm", "remove_res", "remove_out_proj", "same_length"])
def test_options_of_a_log_are_refused_too(toolkit, tmp_path, option) -> None:
    model = toolkit_model(toolkit, 24)
    path = saved(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ImportRefusedError, match=f"--{option}"):
        convert(read_source(path, {**settings_of(model), option: True}))


@pytest.mark.parametrize("missing", ["attn_type", "n_head", "d_head", "tgt_len", "d_model"])
def test_a_state_dict_without_a_setting_says_which(toolkit, tmp_path, missing) -> None:
    model = toolkit_model(toolkit, 24)
    settings = settings_of(model)
    del settings[missing]
    with pytest.raises(ImportRefusedError, match=f"'{missing}' is not in the checkpoint"):
        convert(read_source(saved(model.state_dict(), tmp_path / "m.pt"), settings))


def test_settings_that_do_not_fit_the_tensors_are_refused(toolkit, tmp_path) -> None:
    model = toolkit_model(toolkit, 24)
    path = saved(model.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ImportRefusedError, match=r"qkvb_net.* has shape \[20, 12\], the settings ask for \[30, 12\]"):
        convert(read_source(path, {**settings_of(model), "n_head": 3}))
    with pytest.raises(ImportRefusedError, match=r"no tensor layers.0.dec_attn.qkv_net"):
        convert(read_source(path, {**settings_of(model), "attn_type": 34}))
    with pytest.raises(ImportRefusedError, match="no cutoffs are given"):
        convert(read_source(path, {**settings_of(model), "cutoffs": []}))


# ---- files that are not what they should be ----


class _Runs:
    """A pickle that calls a function when it is read (torch's protocol 2 has some names of Python 2)."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _harm(path: Path) -> list[tuple[str, Any]]:
    command = f"touch {path}"
    return [
        (r"(posix|os)\.system", _Runs(os.system, command)),
        (r"(builtins|__builtin__)\.eval", _Runs(eval, f"open({str(path)!r}, 'w')")),
        (r"(builtins|__builtin__)\.getattr", _Runs(getattr, "x", "upper")),
        (r"(subprocess|commands)\.check_output", _Runs(subprocess.check_output, ["touch", str(path)])),
        (r"torch\.serialization\.load", _Runs(torch.load, str(path))),
        (r"numpy.*\._reconstruct", np.zeros(3)),
    ]


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("number", range(6))
def test_a_pickle_that_would_run_something_is_refused_by_name(toolkit, tmp_path, number, form) -> None:
    touched = tmp_path / "touched"
    name, harm = _harm(touched)[number]
    model = toolkit_model(toolkit, 24)
    model.layers[0].dec_attn.note = harm
    path = tmp_path / "evil.pt"
    if form == "bare":
        path.write_bytes(pickle.dumps(harm, protocol=2))
    else:
        saved(model, path, legacy=form == "legacy")
    with pytest.raises(UnsafePickleError, match=rf"evil.pt: the file wants {name}"):
        torch_pickle.load(path)
    assert not touched.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_cut_short_anywhere_is_an_error_and_no_model(toolkit, tmp_path, legacy) -> None:
    whole = saved(toolkit_model(toolkit, 24), tmp_path / "whole.pt", legacy=legacy).read_bytes()
    path = tmp_path / "cut.pt"
    for size in (0, 1, 40, len(whole) // 3, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut.pt"):
            read_source(path, {})


def test_other_files_are_named_for_what_they_are(tmp_path) -> None:
    path = saved({"epoch": 1, "optimizer_state_dict": {"state": {}}, "val_loss": 2.0}, tmp_path / "best_opt.pt")
    with pytest.raises(ImportRefusedError, match="holds the optimizer"):
        read_source(path, {})
    path = saved([1, 2], tmp_path / "list.pt")
    with pytest.raises(ImportRefusedError, match="neither a saved model nor a state_dict"):
        read_source(path, {})


def test_views_types_and_shared_storages_come_back_as_torch_has_them(tmp_path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"t": base.T, "part": base[1:3, 2:5], "half": base.half(), "bf16": base.bfloat16(), "long": base.long()}
    for legacy in (False, True):
        read = torch_pickle.load(saved(tensors, tmp_path / "x.pt", legacy=legacy))
        for name, tensor in tensors.items():
            assert np.array_equal(read[name].numpy(), tensor.float().numpy()), name


# ---- vocabularies ----


def _corpus(toolkit: dict[str, Any], dataset: str, symbols: list[str]) -> Any:
    corpus, vocab = toolkit["Corpus"](), toolkit["Vocab"]()
    vocab.idx2sym, vocab.sym2idx = symbols, OrderedDict((symbol, i) for i, symbol in enumerate(symbols))
    vocab.counter, vocab.special = Counter(symbols), ["<eos>"]
    corpus.vocab, corpus.dataset, corpus.train = vocab, dataset, torch.arange(5)
    return corpus


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_vocabulary_of_the_cache(toolkit, tmp_path, legacy) -> None:
    path = saved(_corpus(toolkit, "wt103", ["<eos>", "the", "<unk>", "é"]), tmp_path / "cache.pt", legacy=legacy)
    vocabulary = read_vocabulary([path], "auto", 4)
    assert vocabulary.symbols == ["<eos>", "the", "<unk>", "é"]
    assert vocabulary.rules() == {"kind": "word", "unk": "<unk>", "eos": "<eos>", "lowercase": False}
    with pytest.raises(ImportRefusedError, match="gives 4 symbols, the model has 5"):
        read_vocabulary([path], "auto", 5)
    with pytest.raises(ImportRefusedError, match="corpus of lm1b"):
        read_vocabulary([saved(_corpus(toolkit, "lm1b", ["<S>", "<UNK>"]), tmp_path / "other.pt")], "auto", 2)


# ---- the command, and the whole ----


def test_the_command_says_what_is_wrong_and_writes_nothing(toolkit, tmp_path, capsys) -> None:
    path = saved(toolkit_model(toolkit, 24), tmp_path / "m.pt")
    assert main([str(path), "--vocab", str(tmp_path / "none.txt"), "--out", str(tmp_path / "out")]) == 1
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "log.txt").write_text("nothing\n")
    arguments = [str(path), "--vocab", str(path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--log", str(tmp_path / "log.txt")]) == 1
    assert "lists no settings" in capsys.readouterr().err
    assert main([*arguments, "--set", "attn_type"]) == 1
    assert "expected name=value" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_needs_no_torch(toolkit, tmp_path) -> None:
    model = toolkit_model(toolkit, 25, use_sum_norm=False)
    path = saved(model, tmp_path / "m.pt")
    cache = saved(_corpus(toolkit, "wt103", ["<eos>", *(f"w{i}" for i in range(V - 1))]), tmp_path / "cache.pt")
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None\n"
        "from training.import_lmtool import main\n"
        f"sys.exit(main([{str(path)!r}, '--vocab', {str(cache)!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, capture_output=True)
    tensors = weights_file.read(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(tensors["model.embeddings.0.weight"], model.word_emb.emb_layers[0].weight.detach().numpy())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["feature_map"] == "favor"
