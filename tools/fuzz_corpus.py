"""Writes the seeds of the fuzz targets (tests/fuzz) into their corpora, each from a description of what it is.

A corpus also has files that a fuzzer found; those stay as they are.

    python3 tools/fuzz_corpus.py [FOLDER]      (tests/fuzz/corpus by default)
"""

import hashlib
import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"

Seeds = dict[str, bytes]
Json = object


def text(value: Json) -> bytes:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# Protocol Buffers, by hand: the seeds are to be wrong in ways that a library would not let them be.


def varint(value: int) -> bytes:
    """A number as it goes on the wire; a negative one in ten bytes."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    """A field that holds a number."""
    return varint(field << 3) + varint(value)


def real(field: int, value: float) -> bytes:
    """A field of type float."""
    return varint(field << 3 | 5) + struct.pack("<f", value)


def holding(field: int, value: bytes | str) -> bytes:
    """A field that holds bytes, a string or a message."""
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def counted(value: bytes) -> bytes:
    """A length in two bytes and as many bytes, as targets take their inputs apart."""
    return struct.pack("<H", len(value)) + value


# config.json and generation_config.json


def config_seeds() -> Seeds:
    """One good file of each architecture, and what goes wrong with each kind of value."""
    small = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "intermediate_size": 96}
    delta = {"model_type": "delta_net", **small, "eos_token_id": 2, "bos_token_id": None}
    gated = {"model_type": "gated_deltanet", **small, "head_dim": 16, "expand_v": 1.5, "num_v_heads": 8}
    paper = {"model_type": "fwp", "vocab_size": 100, "hidden_size": 16, "num_heads": 2, "head_dim": 8}
    adaptive = {
        **paper,
        "embedding_size": 16,
        "div_val": 2,
        "cutoffs": [20, 60],
        "tie_projections": [True, False, True],
        "update_rule": "delta",
        "attention_norm": "key_and_output",
        "feature_map": "dpfp",
        "dpfp_nu": 3,
    }
    window = {**paper, "mixer": "softmax", "positions": "relative", "segment_length": 16, "memory_length": 16}
    sinusoids = {**paper, "positions": "sinusoidal", "segment_length": 32, "norm_placement": "pre_raw_query"}
    favor = {**paper, "feature_map": "favor", "favor_features": 8, "update_rule": "sum", "attention_norm": "output"}

    def changed(base: Mapping[str, Json], **changes: Json) -> bytes:
        return text({**base, **changes})

    return {
        "delta_net": text(delta),
        "delta_net_all_defaults": text({"model_type": "delta_net"}),
        "gated_deltanet": text(gated),
        "gated_deltanet_with_generation_config": text(gated) + b"\0" + text({"eos_token_id": [2, 3, 511]}),
        "generation_config_id_outside": text(delta) + b"\0" + text({"eos_token_id": 512}),
        "generation_config_id_negative": text(delta) + b"\0" + text({"eos_token_id": [-1]}),
        "generation_config_not_json": text(delta) + b"\0{",
        "generation_config_other_keys": text(delta) + b"\0" + text({"temperature": 0.7, "top_k": {"a": []}}),
        "fwp": text(paper),
        "fwp_adaptive": text(adaptive),
        "fwp_window": changed(window, clamp_length=20),
        "fwp_sinusoids": text(sinusoids),
        "fwp_favor": text(favor),
        "window_without_segment": changed(window, segment_length=0),
        "window_huge": changed(window, segment_length=1 << 30, memory_length=1 << 30),
        "favor_features_many": changed(favor, favor_features=1 << 24),
        "cutoffs_not_ascending": changed(adaptive, cutoffs=[60, 20]),
        "div_val_vanishes": changed(adaptive, div_val=64),
        "heads_zero": changed(delta, num_heads=0),
        "heads_do_not_divide": changed(delta, num_heads=7),
        "layers_many": changed(delta, num_hidden_layers=1 << 31),
        "hidden_fraction": changed(delta, hidden_size=64.5),
        "vocabulary_negative": changed(delta, vocab_size=-1),
        "ratio_huge": changed(delta, expand_k=1e308),
        "ratio_not_a_number": b'{"model_type":"delta_net","expand_k":NaN}',
        "state_huge": changed(gated, head_dim=4096, num_heads=8, num_v_heads=8, num_hidden_layers=1024),
        "unknown_key": changed(delta, rope_theta=10000),
        "key_twice": b'{"model_type":"delta_net","model_type":"gated_deltanet"}',
        "softmax_layers": changed(delta, attn={"layers": [1]}),
        "refused_type": text({"model_type": "qwen3_next"}),
        "nested_deeply": b'{"a":' * 20 + b"1" + b"}" * 20,
        "nested_lists": b'{"a":' + b"[" * 2000,
        "not_an_object": b"[]",
        "empty": b"",
        "token_lists": changed(delta, eos_token_id=[2, 2, 1, 511], bos_token_id=[1, 2]),
        "number_beyond_64_bits": b'{"model_type":"delta_net","vocab_size":340282366920938463463374607431768211456}',
        "text_not_utf8": b'{"model_type":"\xff\xfe"}',
        "surrogate_alone": b'{"model_type":"\\ud800"}',
    }


# Weight files


def tensor_file(header: Json, data: bytes, claimed: int | None = None) -> bytes:
    """A safetensors file, of any header; `claimed` is how long it says that it is."""
    head = header if isinstance(header, bytes) else text(header)
    return struct.pack("<Q", len(head) if claimed is None else claimed) + head + data


def entry(shape: Sequence[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Json]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def safetensors_seeds() -> Seeds:
    """A good file, and one for each way that a header can be at odds with itself or with the file."""
    good = {"a": entry([2, 3], 0, 24), "b": entry([4], 24, 32, "BF16"), "__metadata__": {"format": "pt"}}
    data = bytes(range(32))
    whole = tensor_file(good, data)
    one = {"x": entry([1], 0, 4)}
    name = "model.layers.0.attn.q_proj.weight"
    return {
        "good": whole,
        "good_all_types": tensor_file(
            {
                "h": entry([2, 1], 0, 4, "F16"),
                "i": entry([1], 4, 8, "I32"),
                "l": entry([1], 8, 16, "I64"),
                "none": entry([3, 0], 16, 16),
                "scalar": entry([], 16, 20),
            },
            data[:20],
        ),
        "good_named": tensor_file({name: entry([4, 4], 0, 64), name + "s": entry([1], 64, 68)}, bytes(68)),
        "data_not_aligned": tensor_file(text(one) + b" ", data[:4]),
        "empty": b"",
        "length_alone": struct.pack("<Q", 16),
        "length_absurd": tensor_file(one, data[:4], claimed=(1 << 64) - 1),
        "length_beyond_the_end": tensor_file(one, data[:4], claimed=4096),
        "length_one_too_many": tensor_file(one, b"", claimed=len(text(one)) + 1),
        "truncated": whole[:-1],
        "truncated_in_the_header": whole[:40],
        "bit_flipped_in_the_header": whole[:12] + bytes([whole[12] ^ 1]) + whole[13:],
        "longer": whole + b"x",
        "zip": b"PK\x03\x04 this is another format of weight files",
        "header_empty": tensor_file(b"", b""),
        "header_a_list": tensor_file([], b""),
        "header_nested": tensor_file(b'{"x":' + b"[" * 1000, b""),
        "name_twice": tensor_file(b'{"x":' + text(one["x"]) + b',"x":' + text(one["x"]) + b"}", data[:4]),
        "name_empty": tensor_file({"": entry([1], 0, 4)}, data[:4]),
        "name_long": tensor_file({"n" * 300: entry([1], 0, 4)}, data[:4]),
        "tensors_overlap": tensor_file({"x": entry([1], 0, 4), "y": entry([1], 2, 6)}, data[:6]),
        "tensors_share_bytes": tensor_file({"x": entry([1], 0, 4), "y": entry([1], 0, 4)}, data[:4]),
        "gap": tensor_file({"x": entry([1], 0, 4), "y": entry([1], 8, 12)}, data[:12]),
        "shape_overflows": tensor_file({"x": entry([1 << 32, 1 << 32], 0, 0)}, b""),
        "shape_overflows_behind_zero": tensor_file({"x": entry([0, 1 << 62, 1 << 62], 0, 0)}, b""),
        "dimension_beyond_64_bits": tensor_file(b'{"x":{"dtype":"F32","shape":[1e30],"data_offsets":[0,4]}}', b""),
        "dimension_negative": tensor_file({"x": entry([-1], 0, 4)}, data[:4]),
        "dimensions_many": tensor_file({"x": entry([1] * 9, 0, 4)}, data[:4]),
        "offsets_backwards": tensor_file({"x": entry([1], 4, 0)}, data[:4]),
        "offsets_far": tensor_file({"x": entry([1], (1 << 64) - 4, (1 << 64) - 1)}, data[:4]),
        "offsets_three": tensor_file({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, data[:4]),
        "type_unknown": tensor_file({"x": entry([4], 0, 4, "F8_E4M3")}, data[:4]),
        "metadata_not_an_object": tensor_file({"__metadata__": 3}, b""),
        "keys_unknown": tensor_file({"x": {**entry([1], 0, 4), "scale": 2}}, data[:4]),
    }


def weight_index_seeds() -> Seeds:
    """The index of the target's two shards, and what contradicts them."""
    good = {"a": "a.safetensors", "b": "a.safetensors", "c": "c.safetensors"}

    def index(**changes: Json) -> bytes:
        return text({"metadata": {"total_size": 32}, "weight_map": {**good, **changes}})

    return {
        "good": index(),
        "one_shard": text({"weight_map": {"c": "c.safetensors"}}),
        "tensor_not_listed": text({"weight_map": {"a": "a.safetensors"}}),
        "tensor_not_there": index(d="c.safetensors"),
        "tensor_elsewhere": index(c="a.safetensors"),
        "shard_missing": index(d="d.safetensors"),
        "path_up": index(a="../a.safetensors"),
        "path_absolute": index(a="/etc/a.safetensors"),
        "path_with_zero": index(a="a.safetensors\0.safetensors"),
        "hidden": index(a=".safetensors"),
        "itself": index(a="model.safetensors.index.json"),
        "file_a_number": index(a=3),
        "map_empty": text({"weight_map": {}}),
        "map_a_list": text({"weight_map": ["a"]}),
        "map_missing": text({}),
        "name_twice": b'{"weight_map":{"a":"a.safetensors","a":"c.safetensors"}}',
        "many_shards": text({"weight_map": {str(i): f"{i}.safetensors" for i in range(1100)}}),
        "truncated": index()[:30],
        "empty": b"",
    }


# Tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def piece(value: bytes | str, score: float = 0.0, kind: int = NORMAL) -> bytes:
    """An entry of a SentencePiece model."""
    return holding(1, holding(1, value) + real(2, score) + number(3, kind))


def charsmap(trie: Sequence[int], results: bytes) -> bytes:
    """The rules of a normalizer: a double array and what it points to."""
    return struct.pack(f"<I{len(trie)}I", 4 * len(trie), *trie) + results


def sentencepiece_seeds() -> Seeds:
    """Small models of both kinds, each with a text, and damaged ones."""
    special = piece("<unk>", kind=UNKNOWN) + piece("<s>", kind=CONTROL) + piece("</s>", kind=CONTROL)
    letters = piece("▁", -2) + piece("a", -3) + piece("b", -3.5) + piece("c", -4) + piece("é", -5)
    merges = piece("ab", -0.5) + piece("▁a", -0.7) + piece("▁ab", -0.2) + piece("abc", -0.1)
    all_bytes = b"".join(piece(f"<0x{byte:02X}>", kind=BYTE) for byte in range(256))
    unigram, bpe = holding(2, number(3, 1)), holding(2, number(3, 2))
    fallback = holding(2, number(3, 2) + number(35, 1))
    verbatim = holding(3, number(3, 0) + number(4, 0) + number(5, 1))
    # One rule: "b" becomes "a". Unit 0 is the root, whose children begin at 98 ^ 1; of the leaf, the value is 0.
    trie = [0] * 200
    trie[0] = 1 << 10
    trie[1 ^ 98] = 98 | 1 << 8 | (1 ^ 98 ^ 150) << 10
    trie[150] = 0x80000000
    rules = holding(3, holding(2, charsmap(trie, b"a\0")))
    words = " ab abc  caé\tb▁a \n".encode()

    def with_text(model: bytes, said: bytes = words) -> bytes:
        return counted(said) + model

    good = special + letters + merges
    return {
        "unigram": with_text(good + unigram),
        "bpe": with_text(good + bpe),
        "bpe_bytes": with_text(good + all_bytes + fallback),
        "bpe_bytes_verbatim": with_text(good + all_bytes + fallback + verbatim, words + b"\xff\xe2\x82 \xed\xa0\x80"),
        "unigram_bytes_verbatim": with_text(good + all_bytes + holding(2, number(35, 1)) + verbatim),
        "rules": with_text(good + unigram + rules, b"bb abc"),
        "user_defined": with_text(good + piece("<tag>", kind=USER_DEFINED) + unigram, b"a<tag>b<ta"),
        "unused": with_text(good + piece("c▁", -0.1, UNUSED) + unigram),
        "text_not_utf8": with_text(good + bpe, b"a\xff\xc3\xf0\x9f"),
        "text_long": with_text(good + unigram, b"ab" * 800),
        "text_of_one_letter": with_text(good + bpe, b"a" * 2000),
        "no_unknown": with_text(letters),
        "two_unknown": with_text(good + piece("<u>", kind=UNKNOWN)),
        "piece_twice": with_text(good + piece("a", -9)),
        "piece_empty": with_text(good + piece("")),
        "piece_not_utf8": with_text(good + piece(b"\xc3")),
        "piece_long": with_text(good + piece("x" * 1025)),
        "score_infinite": with_text(good + piece("d", float("inf"))),
        "score_not_a_number": with_text(good + piece("d", float("nan"))),
        "type_unknown": with_text(good + piece("d", 0, 9)),
        "byte_misspelled": with_text(good + piece("<0xG1>", kind=BYTE)),
        "bytes_missing": with_text(good + fallback),
        "algorithm_word": with_text(good + holding(2, number(3, 3))),
        "rules_cut": with_text(good + holding(3, holding(2, charsmap(trie, b"")[:50]))),
        "rules_point_out": with_text(good + holding(3, holding(2, charsmap([1 << 10 | 1 << 9] * 3, b"")))),
        "rules_loop": with_text(good + holding(3, holding(2, charsmap([97 | 1 << 8] * 256, b"a")))),
        "field_cut": with_text(good[:-3]),
        "length_absurd": with_text(varint(1 << 3 | 2) + varint((1 << 63) + 5)),
        "varint_endless": with_text(b"\x0a" + b"\xff" * 11),
        "group": with_text(b"\x0b\x0c"),
        "pieces_empty_many": with_text(holding(1, b"") * 2000),
        "empty": b"",
    }


def vocabulary_seeds() -> Seeds:
    """Words and characters, each with a text."""
    words = text({"kind": "word", "unk": "<unk>", "eos": "<eos>", "lowercase": False})
    characters = text({"kind": "character", "unk": None, "eos": None})
    symbols = "<eos>\nthe\n<unk>\ncat\nThe\n=\né\n".encode()
    digits = b"".join(b"%d\n" % byte for byte in b"ab c")

    def made(rules: bytes, symbols: bytes, said: bytes) -> bytes:
        return rules + b"\0" + symbols + b"\0" + said

    return {
        "words": made(words, symbols, "the  cat é\n = the =\r\n\n The dog".encode()),
        "words_strange_spaces": made(words, symbols, "the\u00a0cat\u2003the\u0085cat\u2028the\x1ccat".encode()),
        "words_text_not_utf8": made(words, symbols, b"the\xffcat \xc3\nthe"),
        "words_no_eos": made(text({"kind": "word", "unk": "<unk>", "eos": None}), symbols, b"the\ncat\n"),
        "characters": made(characters, digits, b"abc \x00ab\n"),
        "characters_unknown": made(text({"kind": "character", "unk": "<u>"}), digits + b"<u>\n", b"a\xffb"),
        "characters_eos": made(text({"kind": "character", "eos": "<e>"}), digits + b"<e>\n", b"a\nb"),
        "characters_eos_and_newline": made(text({"kind": "character", "eos": "<e>"}), b"10\n97\n<e>\n", b"a\n\n"),
        "symbol_twice": made(words, symbols + b"cat\n", b""),
        "symbol_empty": made(words, symbols + b"\n\n", b""),
        "symbol_with_space": made(words, symbols + b"a b\n", b""),
        "symbol_not_utf8": made(words, symbols + b"\xff\n", b""),
        "digits_beyond": made(characters, b"256\n-1\n01\n", b""),
        "last_line_without_end": made(words, symbols[:-1], b"the"),
        "carriage_returns": made(words, symbols.replace(b"\n", b"\r\n"), b"the"),
        "no_symbols": made(words, b"", b"the"),
        "unknown_not_there": made(text({"kind": "word", "unk": "<none>"}), symbols, b"the"),
        "kind_missing": made(b"{}", symbols, b""),
        "kind_a_number": made(text({"kind": 3}), symbols, b""),
        "lowercase": made(text({"kind": "word", "unk": "<unk>", "lowercase": True}), symbols, b""),
        "unk_a_list": made(text({"kind": "word", "unk": ["<unk>"]}), symbols, b""),
        "key_unknown": made(text({"kind": "word", "unk": "<unk>", "x": 1}), symbols, b""),
        "rules_nested": made(b'{"kind":' + b"[" * 3000, symbols, b""),
        "rules_cut": made(words[:20], symbols, b""),
        "empty": b"",
    }


# Snapshots


def snapshot(
    position: int = 3,
    *,
    magic: bytes = b"PLMPSTAT",
    version: int = 1,
    pending: int | None = None,
    recent: Sequence[int] | None = None,
    undecoded: bytes = b"",
    data: bytes = bytes(128),
    header_more: int = 0,
    data_more: int = 0,
    layout_hash: int = 0x0123456789ABCDEF,
    fingerprint: bytes = bytes(range(32)),
) -> bytes:
    """A snapshot of the format that the target expects, and what can be wrong with it; docs/state.md."""
    tokens = [0] * min(position, 256)
    for p in range(max(0, position - 256), position) if position < 1 << 20 else range(0):
        tokens[p % 256] = (7 * p + 3) % 1000
    recent = tokens if recent is None else recent
    last = recent[(position - 1) % 256 % len(recent)] if recent else -1
    head = struct.pack("<qiI", position, last if pending is None else pending, len(recent))
    head += struct.pack(f"<{len(recent)}i", *recent) + struct.pack("<I", len(undecoded)) + undecoded
    length = 8 + 4 + 4 + 32 + 8 + len(head) + 8 + header_more
    body = magic + struct.pack("<II", version, length) + fingerprint + struct.pack("<Q", layout_hash) + head
    body += struct.pack("<Q", len(data) + data_more) + data
    return body + hashlib.sha256(body).digest()


def snapshot_seeds() -> Seeds:
    """Good ones, and one for each field that lies. The target also reads each with the checksum that belongs to it."""
    good = snapshot(300, undecoded="€".encode()[:2])
    return {
        "good": good,
        "good_empty": snapshot(0),
        "good_short": snapshot(3, undecoded=b"\xf0\x9f\x98"),
        "good_at_the_edge_of_the_ring": snapshot(256),
        "empty": b"",
        "magic_alone": b"PLMPSTAT",
        "magic_wrong": snapshot(magic=b"PLMPSTAR"),
        "version_2": snapshot(version=2),
        "truncated_by_one": good[:-1],
        "truncated_in_the_head": good[:100],
        "longer_by_one": good + b"x",
        "checksum_wrong": good[:-1] + bytes([good[-1] ^ 1]),
        "bit_flipped": good[:500] + bytes([good[500] ^ 16]) + good[501:],
        "position_negative": snapshot(3, recent=[1, 2, 3])[:56] + struct.pack("<q", -1) + snapshot(3)[64:],
        "position_far": snapshot(1 << 62, recent=[1] * 256),
        "recent_too_few": snapshot(10, recent=[1, 2]),
        "recent_too_many": snapshot(3, recent=[5] * 300),
        "recent_absurd": good[:68] + b"\xff\xff\xff\xff" + good[72:],
        "token_outside": snapshot(2, recent=[1, 1000]),
        "token_negative": snapshot(2, recent=[1, -5]),
        "pending_wrong": snapshot(3, pending=999),
        "undecoded_whole_character": snapshot(undecoded="€".encode()),
        "undecoded_overlong": snapshot(undecoded=b"\xe0\x80"),
        "undecoded_long": snapshot(undecoded=b"\xe2" * 40),
        "header_length_wrong": snapshot(header_more=8),
        "data_length_wrong": snapshot(data_more=-1),
        "data_length_absurd": snapshot(data_more=(1 << 63)),
        "data_of_another_size": snapshot(data=bytes(64)),
        "layout_of_another": snapshot(layout_hash=1),
        "model_of_another": snapshot(fingerprint=bytes(32)),
    }


def flag_file_seeds() -> Seeds:
    """Files with flags of every type, and what is no flag."""
    return {
        "good": b"# a comment\n--rows=3\n  --bytes=-9\n--share=0.25\n--watch=true\n--patience=1h30m\n--name=a b=c\n",
        "list": b"--item=a\n--item=b,c\n--item=\n",
        "bool_without_value": b"--watch\n",
        "bool_negated": b"--nowatch\n",
        "number_too_large": b"--rows=2147483648\n",
        "number_hexadecimal": b"--rows=0x10\n",
        "number_with_unit": b"--bytes=1GiB\n",
        "real_strange": b"--share=nan\n--share=inf\n--share=1e400\n--share=0x1p-3\n",
        "duration_strange": b"--patience=-inf\n--patience=1y\n--patience=999999999999h\n",
        "another_file": b"--flagfile=/etc/passwd\n",
        "itself": b"--flagfile=\n",
        "unknown_flag": b"--help=1\n",
        "flag_of_a_library": b"--undefok=rows\n",
        "one_dash": b"-rows=3\n",
        "no_dash": b"rows=3\n",
        "name_empty": b"--=3\n",
        "dashes_alone": b"--\n",
        "zero_bytes": b"--name=\0\n--rows\0=3\n",
        "not_utf8": b"--name=\xff\xfe\n",
        "carriage_returns": b"--rows=3\r\n--watch=false\r\n",
        "last_line_without_end": b"--rows=3",
        "tcp_address": b"--rows=tcp://10.0.0.1:80\n",
        "line_long": b"--name=" + b"x" * 5000 + b"\n",
        "empty": b"",
    }


def auth_tokens_seeds() -> Seeds:
    """A good file of owners, and what is refused."""
    token = hashlib.sha256(b"foo").hexdigest()
    search = {"roles": ["user"], "token_sha256": [token], "certificates": ["URI:spiffe://example.org/search"]}
    limits = ("max_slots", "max_queue", "prefill_budget", "max_sessions", "max_snapshots", "max_state_bytes")
    share = {"weight": 2.5, **{name: 9 for name in limits}}

    def owners(**named: Json) -> bytes:
        return text({"version": 1, "owners": {name.replace("_", "-"): owner for name, owner in named.items()}})

    def shared(**changes: Json) -> bytes:
        return owners(search={**search, "share": {**share, **changes}})

    return {
        "good": owners(search=search, ops={"roles": ["admin", "metrics"], "certificates": ["CN:ops", "DNS:ops.test"]}),
        "good_share": shared(),
        "no_owners": owners(),
        "owner_of_nothing": owners(search={}),
        "owners_a_list": text({"version": 1, "owners": [search]}),
        "owner_id_empty": text({"version": 1, "owners": {"": search}}),
        "owner_id_strange": text({"version": 1, "owners": {"../Search": search}}),
        "owner_id_long": owners(**{"a" * 64: search}),
        "owner_twice": b'{"version":1,"owners":{"a":{},"a":{}}}',
        "role_unknown": owners(search={**search, "roles": ["root"]}),
        "role_twice": owners(search={**search, "roles": ["user", "user"]}),
        "token_of_two": owners(search=search, other={"roles": ["user"], "token_sha256": [token]}),
        "token_in_the_clear": owners(search={**search, "token_sha256": ["foo"]}),
        "token_upper_case": owners(search={**search, "token_sha256": [token.upper()]}),
        "token_of_nothing": owners(search={**search, "token_sha256": [hashlib.sha256(b"").hexdigest()]}),
        "tokens_many": owners(search={"roles": ["user"], "token_sha256": [f"{i:064x}" for i in range(65)]}),
        "certificate_strange": owners(search={**search, "certificates": ["IP:1", "URI:", "CN:a\nb"]}),
        "certificate_of_two": owners(search=search, other={**search, "token_sha256": []}),
        "weight_zero": shared(weight=0),
        "weight_negative": shared(weight=-1),
        "weight_huge": shared(weight=1e308),
        "slots_fraction": shared(max_slots=1.5),
        "bytes_beyond_64_bits": shared(max_state_bytes=1 << 64),
        "sessions_negative": shared(max_sessions=-1),
        "share_unknown": shared(max_cats=1),
        "version_2": text({"version": 2, "owners": {}}),
        "version_missing": text({"owners": {}}),
        "nested_deeply": b'{"version":1,"owners":' + b'{"a":' * 40,
        "not_json": b"search: [user]",
        "empty": b"",
    }


# Messages. The numbers of fields are those of proto/palimpsest/v1.

WIRE_TYPES = (
    "Generate",
    "Score",
    "Tokenize",
    "Detokenize",
    "CreateSession",
    "UpdateSession",
    "ForkSession",
    "CreateSnapshot",
    "UploadSnapshot",
    "LoadModel",
)
METHODS = (
    "Generate",
    "Score",
    "Tokenize",
    "Detokenize",
    "CreateSession",
    "GetSession",
    "ListSessions",
    "UpdateSession",
    "ForkSession",
    "DeleteSession",
    "CreateSnapshot",
    "GetSnapshot",
    "ListSnapshots",
    "DeleteSnapshot",
    "DownloadSnapshot",
    "UploadSnapshot",
    "ListModels",
    "GetModel",
    "LoadModel",
    "UnloadModel",
    "InterruptSession",
)

DURATION = number(1, 60) + number(2, 500_000_000)
SAMPLING = holding(1, number(1, 97) + real(2, -5.0)) + real(2, 1.5) + real(5, 0.0) + number(6, 40) + number(9, 7)
UUID = "8c2d7d9a-3f0e-4b65-9a51-5a7d4be1f001"
STOP = number(1, 4) + holding(2, "the end") + holding(3, varint(10) + varint(13))


def messages() -> dict[str, tuple[str, bytes, int]]:
    """By name: the method, its message, and how often that is doubled."""
    session, nothing = holding(1, "sessions/kept"), b""
    generate = holding(1, "models/tiny") + holding(4, "Once upon") + holding(6, SAMPLING) + holding(7, STOP)
    found = {
        "generate": ("Generate", generate + number(8, 1) + number(9, 5) + number(11, 1) + holding(12, "id-1"), 0),
        "generate_session": ("Generate", holding(2, "sessions/kept") + holding(4, " and then"), 0),
        "generate_tokens": ("Generate", holding(5, holding(1, b"\x01\x02\x03")) + number(10, 1), 0),
        "generate_tokens_not_packed": ("Generate", holding(5, number(1, 65)), 10),
        "generate_tokens_outside": ("Generate", holding(5, holding(1, varint(256) + varint(-1))), 0),
        "generate_not_finite": ("Generate", holding(5, holding(1, varint(255))), 0),
        "generate_not_finite_session": ("Generate", holding(2, "sessions/kept") + holding(5, number(1, 255)), 0),
        "generate_nothing": ("Generate", nothing, 0),
        "generate_both_contexts": ("Generate", holding(2, "sessions/kept") + holding(3, b"PLMPSTAT"), 0),
        "generate_damaged_state": ("Generate", holding(3, snapshot()) + holding(4, "x"), 0),
        "generate_no_more_tokens": ("Generate", holding(4, "x") + holding(7, number(1, 0)), 0),
        "generate_tokens_negative": ("Generate", holding(4, "x") + holding(7, number(1, -1)), 0),
        "generate_numbers_not_finite": (
            "Generate",
            holding(4, "x") + holding(6, b"".join(real(f, float("nan")) for f in (2, 3, 4, 5, 7, 8))),
            0,
        ),
        "generate_bias_outside": ("Generate", holding(4, "x") + holding(6, holding(1, number(1, -7) + real(2, 1))), 0),
        "empty_stop_strings": ("Generate", holding(7, holding(2, b"")), 19),
        "empty_stop_strings_few": ("Generate", holding(4, "x") + holding(7, holding(2, b"") * 3), 0),
        "stop_strings_many": ("Generate", holding(4, "x") + holding(7, holding(2, "stop") * 40), 0),
        "biases_empty": ("Generate", holding(6, holding(1, b"")), 19),
        "unknown_fields": ("Generate", holding(15, b"") + number(16, 1) + varint(17 << 3 | 5) + b"1234", 17),
        "unknown_group": ("Generate", varint(20 << 3 | 3) + varint(20 << 3 | 4), 0),
        "fields_of_other_types": ("Generate", number(4, 1) + holding(9, b"\x01") + number(6, 3), 0),
        "fields_of_other_types_many": ("Generate", number(6, 3), 19),
        "short_strings_many": ("ForkSession", holding(3, "sixteen-letters-"), 12),
        "unknown_short_strings_many": ("ForkSession", holding(13, "sixteen-letters-"), 12),
        "score": ("Score", holding(4, "Once upon a time") + number(6, 1) + number(7, 3) + number(9, 1), 0),
        "score_session": ("Score", holding(2, "sessions/kept") + holding(5, holding(1, b"\x05\x06")), 0),
        "score_last": ("Score", holding(4, "Once upon a time") + number(11, 4), 0),
        "score_last_outside": ("Score", holding(4, "x") + number(11, -4), 0),
        "score_nothing": ("Score", holding(4, ""), 0),
        "tokenize": ("Tokenize", holding(2, "Onceé upon") + number(3, 1), 0),
        "tokenize_not_utf8": ("Tokenize", holding(2, b"\xff\xfe"), 0),
        "tokenize_long": ("Tokenize", holding(2, "word " * 300), 0),
        "detokenize": ("Detokenize", holding(2, b"\x41\x42\xc3\x01"), 0),
        "detokenize_outside": ("Detokenize", number(2, -1) + number(2, 1 << 30), 0),
        "create": ("CreateSession", holding(1, "new") + holding(2, holding(9, DURATION)) + holding(5, UUID), 0),
        "create_kept": ("CreateSession", holding(1, "kept"), 0),
        "create_from_session": ("CreateSession", holding(1, "copy") + holding(3, "sessions/kept"), 0),
        "create_from_snapshot": ("CreateSession", holding(4, "snapshots/kept"), 0),
        "create_id_empty": ("CreateSession", holding(1, ""), 0),
        "create_id_strange": ("CreateSession", holding(1, "../kept\n"), 0),
        "create_id_long": ("CreateSession", holding(1, "a" * 64), 0),
        "create_ttl_strange": ("CreateSession", holding(2, holding(9, number(1, -(1 << 62)) + number(2, -1))), 0),
        "create_ttl_tiny": ("CreateSession", holding(1, "brief") + holding(2, holding(9, number(2, 1))), 0),
        "get": ("GetSession", session, 0),
        "get_nothing": ("GetSession", holding(1, "sessions/none"), 0),
        "get_name_strange": ("GetSession", holding(1, "sessions//kept/"), 0),
        "list": ("ListSessions", number(1, 1), 0),
        "list_page_strange": ("ListSessions", number(1, -1) + holding(2, "AAAA"), 0),
        "update": ("UpdateSession", holding(1, session + holding(9, DURATION)) + holding(2, holding(1, "ttl")), 0),
        "update_etag": ("UpdateSession", holding(1, session + holding(10, "1")), 0),
        "mask_of_empty_paths": ("UpdateSession", holding(1, session) + holding(2, holding(1, b"") * 100), 0),
        "mask_of_empty_paths_many": ("UpdateSession", holding(2, holding(1, b"")), 19),
        "mask_of_empty_paths_at_the_limit": ("UpdateSession", holding(2, holding(1, b"")), 12),
        "mask_of_other_paths": ("UpdateSession", holding(1, session) + holding(2, holding(1, "name") * 20), 0),
        "fork": ("ForkSession", session + number(2, 2) + holding(4, DURATION) + holding(5, UUID), 0),
        "fork_request_id_strange": ("ForkSession", session + holding(5, "id\x7f"), 0),
        "fork_named": ("ForkSession", session + holding(3, "one") + holding(3, "two"), 0),
        "fork_named_alike": ("ForkSession", session + holding(3, "one") * 2, 0),
        "fork_empty_ids": ("ForkSession", session + holding(3, b"") * 30, 0),
        "fork_empty_ids_many": ("ForkSession", holding(3, b""), 19),
        "fork_empty_ids_at_the_limit": ("ForkSession", session + holding(3, b"") * 8, 12),
        "fork_count_many": ("ForkSession", session + number(2, 1024), 0),
        "fork_count_negative": ("ForkSession", session + number(2, -1), 0),
        "interrupt": ("InterruptSession", session, 0),
        "interrupt_nothing": ("InterruptSession", holding(1, "sessions/none"), 0),
        "list_of_all_owners": ("ListSessions", holding(3, "-"), 0),
        "list_of_another_owner": ("ListSnapshots", holding(3, "search"), 0),
        "delete": ("DeleteSession", session, 0),
        "delete_etag": ("DeleteSession", session + holding(2, "999"), 0),
        "snapshot": ("CreateSnapshot", holding(1, "new") + holding(2, "sessions/kept") + holding(4, UUID), 0),
        "snapshot_of_nothing": ("CreateSnapshot", holding(2, "sessions/none"), 0),
        "snapshot_get": ("GetSnapshot", holding(1, "snapshots/kept"), 0),
        "snapshot_list": ("ListSnapshots", nothing, 0),
        "snapshot_delete": ("DeleteSnapshot", holding(1, "snapshots/kept"), 0),
        "snapshot_download": ("DownloadSnapshot", holding(1, "snapshots/kept"), 0),
        "snapshot_upload_damaged": ("UploadSnapshot", holding(1, "up") + holding(4, snapshot()), 0),
        "snapshot_upload_nothing": ("UploadSnapshot", nothing, 0),
        "models": ("ListModels", nothing, 0),
        "model": ("GetModel", holding(1, "models/tiny"), 0),
        "model_load": ("LoadModel", holding(1, "second") + holding(2, "other"), 0),
        "model_load_outside": ("LoadModel", holding(1, "second") + holding(2, "../../etc"), 0),
        "model_load_nothing": ("LoadModel", holding(1, "second") + holding(2, ""), 0),
        "model_unload": ("UnloadModel", holding(1, "models/tiny"), 0),
        "model_unload_nothing": ("UnloadModel", holding(1, "models/none"), 0),
        "cut": ("GetSession", b"\x0a\x20sessions/", 0),
        "field_zero": ("GetSession", b"\x02\x00", 0),
        "tag_long": ("GetSession", b"\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x00\x01x", 0),
        "length_absurd": ("GetSession", b"\x0a\xff\xff\xff\xff\x0f", 0),
        "length_negative": ("GetSession", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0),
        "nested_cut": ("UpdateSession", holding(1, b"\x0a\x40sessions"), 0),
    }
    return found


def wire_seeds() -> Seeds:
    """Messages of the types that hold something, in one piece and in many."""
    seeds: Seeds = {}
    for name, (method, message, doublings) in messages().items():
        if method not in WIRE_TYPES:
            continue
        seeds[name] = bytes([WIRE_TYPES.index(method), doublings, 0]) + message
        if doublings == 0 and len(message) > 40:
            seeds[name + "_in_pieces"] = bytes([WIRE_TYPES.index(method), 0, 1]) + message
    return seeds


def rpc_seeds() -> Seeds:
    """A call with each message, and calls with none or with several."""
    seeds = {
        name: bytes([METHODS.index(method), doublings]) + counted(message)
        for name, (method, message, doublings) in messages().items()
    }
    upload = METHODS.index("UploadSnapshot")
    good = snapshot()
    seeds["upload_in_messages"] = bytes([upload, 0]) + b"".join(
        [counted(holding(1, "up") + holding(4, good[:50])), counted(holding(4, good[50:100])), counted(holding(4, b""))]
    )
    seeds["upload_says_its_name_twice"] = bytes([upload, 0]) + 2 * counted(holding(1, "up") + holding(4, b"PLMP"))
    seeds["upload_second_message_unreadable"] = (
        bytes([upload, 0]) + counted(holding(1, "up") + holding(4, good[:9])) + counted(b"\x0a\x20")
    )
    seeds["upload_empty_messages"] = bytes([upload, 0]) + 7 * counted(b"")
    seeds["unary_of_two_messages"] = bytes([METHODS.index("GetSession"), 0]) + 2 * counted(holding(1, "sessions/kept"))
    return seeds


# HTTP/2

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name: str, value: bytes | str) -> bytes:
    """A header that is spelled out and not remembered."""
    value = value.encode() if isinstance(value, str) else value
    return b"\x00" + hpack_int(len(name)) + name.encode() + hpack_int(len(value)) + value


def hpack_int(value: int) -> bytes:
    """A length in HPACK, of seven bits and what goes on."""
    if value < 127:
        return bytes([value])
    return b"\x7f" + varint(value - 127)


GET_SESSION = "palimpsest.v1.SessionService/GetSession"


def request(method: str, *more: bytes) -> bytes:
    """The headers of a call."""
    return b"".join(
        [
            header(":method", "POST"),
            header(":scheme", "http"),
            header(":path", f"/{method}"),
            header(":authority", "localhost"),
            header("te", "trailers"),
            header("content-type", "application/grpc"),
            *more,
        ]
    )


def setting(key: int, value: int) -> bytes:
    """One entry of a SETTINGS frame."""
    return struct.pack(">HI", key, value)


def http2_seeds() -> Seeds:
    """Good connections, and floods and lies of every kind of frame. A part is doublings, then its bytes, counted."""

    def parts(*each: bytes | tuple[bytes, int]) -> bytes:
        out = b""
        for part in each:
            value, doublings = part if isinstance(part, tuple) else (part, 0)
            out += bytes([doublings]) + counted(value)
        return out

    start = PREFACE + frame(SETTINGS)
    get = frame(HEADERS, END_HEADERS, 1, request(GET_SESSION))
    name = holding(1, "sessions/kept")
    message = b"\0" + struct.pack(">I", len(name)) + name
    sent = frame(DATA, END_STREAM, 1, message)
    open_get = start + get
    reset = frame(RST_STREAM, 0, 1, struct.pack(">I", 8))

    def calls(count: int, tail: bool) -> bytes:
        block = request(GET_SESSION)
        out = b""
        for stream in range(1, 2 * count, 2):
            out += frame(HEADERS, END_HEADERS, stream, block)
            out += frame(RST_STREAM, 0, stream, struct.pack(">I", 8)) if tail else b""
        return out

    def with_header(key: str, value: bytes | str) -> bytes:
        block = request(GET_SESSION, header(key, value))
        return parts(start, frame(HEADERS, END_HEADERS, 1, block) + sent)

    huge = frame(HEADERS, 0, 1, request(GET_SESSION))
    return {
        "good_call": parts(start, get + sent, frame(SETTINGS, 1)),
        "good_call_in_bytes": parts(PREFACE, frame(SETTINGS)[:4], frame(SETTINGS)[4:], get[:30], get[30:], sent),
        "good_ping": parts(start, frame(PING, 0, 0, b"12345678")),
        "nothing": b"",
        "preface_cut": parts(PREFACE[:10]),
        "preface_wrong": parts(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        "tls_hello": parts(bytes.fromhex("16030100a5010000a10303") + bytes(100)),
        "random": parts((bytes(range(256)), 4)),
        "settings_window_0": parts(PREFACE + frame(SETTINGS, 0, 0, setting(4, 0)), get + sent),
        "settings_window_too_large": parts(PREFACE + frame(SETTINGS, 0, 0, setting(4, 1 << 31))),
        "settings_frame_size_wrong": parts(PREFACE + frame(SETTINGS, 0, 0, setting(5, 1))),
        "settings_table_absurd": parts(PREFACE + frame(SETTINGS, 0, 0, setting(1, (1 << 32) - 1)), get + sent),
        "settings_odd_length": parts(PREFACE + frame(SETTINGS, 0, 0, b"12345")),
        "settings_flood": parts(start, (frame(SETTINGS, 0, 0, setting(3, 100)), 10)),
        "settings_ack_flood": parts(start, (frame(SETTINGS, 1), 10)),
        "ping_flood": parts(start, (frame(PING, 0, 0, bytes(8)), 10)),
        "ping_wrong_length": parts(start, frame(PING, 0, 0, bytes(7))),
        "rapid_resets": parts(start, calls(40, tail=True)),
        "streams_many": parts(start, calls(40, tail=False)),
        "stream_number_backwards": parts(start, frame(HEADERS, END_HEADERS, 5, request("X/Y")) + get),
        "stream_number_even": parts(start, frame(HEADERS, END_HEADERS, 2, request("X/Y"))),
        "stream_0": parts(start, frame(HEADERS, END_HEADERS, 0, request("X/Y")), frame(DATA, 0, 0, b"x")),
        "continuation_flood": parts(start + huge, (frame(CONTINUATION, 0, 1, header("x-a", "b" * 100)), 10)),
        "continuation_empty_flood": parts(start + huge, (frame(CONTINUATION, 0, 1), 12)),
        "continuation_of_another": parts(start + huge, frame(CONTINUATION, END_HEADERS, 3)),
        "continuation_of_nothing": parts(start, frame(CONTINUATION, END_HEADERS, 1, request("X/Y"))),
        "continuation_broken_off": parts(start + huge, frame(PING, 0, 0, bytes(8))),
        "data_before_headers": parts(start, sent),
        "data_after_the_end": parts(open_get + sent, sent),
        "data_empty_flood": parts(open_get, (frame(DATA, 0, 1), 12)),
        "data_padded_wrong": parts(open_get, frame(DATA, 8, 1, b"\xff123")),
        "data_over_the_window": parts(open_get, (frame(DATA, 0, 1, b"\0" + bytes(8000)), 5)),
        "message_length_absurd": parts(open_get, frame(DATA, END_STREAM, 1, b"\0\xff\xff\xff\xff" + name)),
        "message_compressed_falsely": parts(open_get, frame(DATA, END_STREAM, 1, b"\1" + message[1:])),
        "message_flag_strange": parts(open_get, frame(DATA, END_STREAM, 1, b"\7" + message[1:])),
        "message_cut": parts(open_get, frame(DATA, END_STREAM, 1, message[:-3])),
        "message_twice": parts(open_get, frame(DATA, END_STREAM, 1, message + message)),
        "message_none": parts(open_get, frame(DATA, END_STREAM, 1)),
        "reset_idle": parts(start, reset),
        "reset_flood": parts(open_get, (reset, 10)),
        "goaway": parts(open_get, frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)) + sent),
        "goaway_cut": parts(start, frame(GOAWAY, 0, 0, b"123")),
        "push": parts(start, frame(PUSH, END_HEADERS, 1, struct.pack(">I", 2))),
        "priority_on_itself": parts(start, frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 16))),
        "priority_flood": parts(start, (frame(PRIORITY, 0, 3, struct.pack(">IB", 1, 16)), 10)),
        "window_update_0": parts(open_get, frame(WINDOW_UPDATE, 0, 1, bytes(4))),
        "window_update_overflow": parts(start, (frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), 1)),
        "window_update_flood": parts(open_get, (frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), 10)),
        "frame_kind_unknown": parts(start, frame(77, 255, 1, b"whatever") + get + sent),
        "frame_too_long": parts(start, b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", bytes(100)),
        "frame_cut": parts(start, get[:20]),
        "hpack_index_absurd": parts(start, frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\x0f")),
        "hpack_index_endless": parts(start, frame(HEADERS, END_HEADERS, 1, b"\xff" * 30)),
        "hpack_index_0": parts(start, frame(HEADERS, END_HEADERS, 1, b"\x80")),
        "hpack_huffman_wrong": parts(start, frame(HEADERS, END_HEADERS, 1, b"\x00\x84\xff\xff\xff\xff\x01a")),
        "hpack_table_size_absurd": parts(start, frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\xff\xff\x0f")),
        "hpack_length_absurd": parts(start, frame(HEADERS, END_HEADERS, 1, b"\x00\x7f\xff\xff\xff\xff\x07a")),
        "headers_missing": parts(start, frame(HEADERS, END_HEADERS, 1, header(":method", "POST")) + sent),
        "headers_twice": parts(start, frame(HEADERS, END_HEADERS, 1, 2 * request("X/Y")) + sent),
        "headers_many": parts(start, frame(HEADERS, END_HEADERS, 1, request("X/Y", header("x", "y") * 500)) + sent),
        "header_long": with_header("x-long", "a" * 9000),
        "header_binary_malformed": with_header("x-data-bin", "not base64 !!"),
        "header_binary": with_header("x-data-bin", "AAECAw"),
        "header_upper_case": with_header("X-Upper", "a"),
        "header_zero_bytes": with_header("x-zero", b"a\0b\r\nc: d"),
        "timeout_strange": with_header("grpc-timeout", "99999999999H"),
        "timeout_0": with_header("grpc-timeout", "0n"),
        "encoding_unknown": with_header("grpc-encoding", "rot13"),
        "trace_strange": with_header("traceparent", "00-ffffffffffffffffffffffffffffffff-0000000000000000-01"),
        "user_agent_long": with_header("user-agent", "x" * 4000),
        "method_unknown": parts(start, frame(HEADERS, END_HEADERS, 1, request("NoService/Nothing")) + sent),
        "path_strange": parts(start, frame(HEADERS, END_HEADERS, 1, request("../../etc/passwd\n")) + sent),
        "health_call": parts(
            start,
            frame(HEADERS, END_HEADERS, 1, request("grpc.health.v1.Health/Check")) + frame(DATA, 1, 1, bytes(5)),
        ),
    }


SEEDS = {
    "config": config_seeds,
    "safetensors": safetensors_seeds,
    "weight_index": weight_index_seeds,
    "sentencepiece": sentencepiece_seeds,
    "vocabulary": vocabulary_seeds,
    "snapshot": snapshot_seeds,
    "flag_file": flag_file_seeds,
    "auth_tokens": auth_tokens_seeds,
    "wire": wire_seeds,
    "rpc": rpc_seeds,
    "http2": http2_seeds,
}


def main() -> int:
    """Writes all seeds."""
    corpus = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS
    for target, seeds in SEEDS.items():
        folder = corpus / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, seed in seeds().items():
            (folder / name).write_bytes(seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
