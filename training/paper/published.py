"""Numbers of arXiv 2102.11174: its tables, its text, and the logs that its authors left beside their code and in the
TeX source. Only what docs/paper.md sets beside measurements."""

from __future__ import annotations


def _over_keys(*losses: float) -> dict[int, float]:
    return dict(zip((60, 80, 100, 140, 200, 260, 400, 600), losses, strict=True))


# Setting 1: the last logged loss, by system and U (logs of ischlag/fast-weight-transformers). "<.0001" is 0.0001 here.
CAPACITY: dict[str, dict[int, float]] = {
    "linear-sum": _over_keys(0.0246, 0.1101, 0.1715, 0.2724, 0.3426, 0.3797, 0.4222, 0.4517),
    "dpfp1-sum": _over_keys(0.0004, 0.0002, 0.0002, 0.0532, 0.1751, 0.2715, 0.3464, 0.4177),
    "dpfp2-sum": _over_keys(0.0010, 0.0006, 0.0005, 0.0005, 0.0004, 0.0097, 0.1662, 0.3263),
    "dpfp3-sum": _over_keys(0.0005, 0.0007, 0.0005, 0.0009, 0.0009, 0.0004, 0.0361, 0.2012),
    "favor64-sum": _over_keys(0.493, *[0.5] * 7),
    "favor128-sum": _over_keys(0.485, *[0.5] * 7),
    "favor512-sum": _over_keys(0.409, *[0.5] * 7),
    "softmax": _over_keys(*[0.0001] * 7, 0.0536),
}
# Setting 2: the last logged loss on sequences of U pairs.
UPDATES: dict[str, dict[int, float]] = {
    "dpfp1-delta": {20: 0.0008, 200: 0.1855},
    "dpfp1-sum": {20: 0.1048, 200: 0.2386},
    "linear-delta": {60: 0.0005, 80: 0.1014, 200: 0.3425},
    "dpfp2-delta": {100: 0.0854},
}
# WikiText-103, small models, perplexity (validation, test).
TRUNCATED: dict[str, tuple[float, float]] = {
    "softmax": (33.0, 34.1),
    "linear-sum": (37.1, 38.3),
    "linear-delta": (34.1, 35.5),
    "favor-sum": (39.0, 39.6),
    "favor-delta": (36.1, 37.2),
    "dpfp1-sum": (37.7, 38.8),
    "dpfp1-delta": (33.9, 35.0),
    "delta-attention-norm": (36.09, 37.17),
}
# WikiText-103, medium models trained and measured with the state carried through the whole text.
CARRIED: dict[str, str] = {
    "linear-sum-carried": "above 260",
    "linear-delta-carried": "27.8 / 29.4",
}
