"""What the golden files say, as far as the script that makes them and the test that reads them must agree.

A gradient of millions of numbers is kept as 18: its norm, 16 entries, and a projection, the sum of its elements under
fixed random signs. A norm alone would miss a transpose or a permutation. A projection moves by about as much as the
gradient does: its mean square is the square of the norm.

The random numbers come from RandomState, whose stream NumPy promises never to change.
"""

import zlib

import numpy as np

MODELS = ["minilm", "bert-base, 2 layers"]
LABELS = ["negative", "positive"]

OPINIONS = [
    ("Three hours long, and I would gladly have stayed for a fourth.", "positive"),
    ("The plot is a sieve.", "negative"),
    ("Nobody who has tasted this soup will ask for the recipe, unless they want to know what to avoid.", "negative"),
    ("Splendid!", "positive"),
    ("It is not the best phone I have owned, but it is the first that I have not wanted to throw.", "positive"),
    ("A hotel for people who find silence oppressive and towels a luxury.", "negative"),
    ("I expected to be bored; instead I missed my stop, twice, and did not mind.", "positive"),
    ("The author has read a great many books, and I wish I were reading one of them.", "negative"),
    ("Cheap, sturdy, and it does what it says.", "positive"),
    ("They apologised so charmingly for the cold food that I nearly forgot to be hungry.", "negative"),
    ("Against all reason, the sequel works.", "positive"),
    ("Never again.", "negative"),
    ("My grandmother, who likes nothing, had a second helping.", "positive"),
    ("The app is beautiful, the support is friendly, and my photographs are gone.", "negative"),
    ("You will laugh, then look around to see whether anybody saw you cry.", "positive"),
    ("As a doorstop I can recommend it.", "negative"),
]  # fmt: skip

BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 3072}
"""The shape of bert-base but for the number of layers; the vocabulary is the tokens of the opinions."""

ENTRIES = 16

STEPS, WARMUP, TEXTS_PER_STEP = 20, 4, 4
WEIGHT_DECAY, MAX_NORM = 0.05, 1.0
LEARNING_RATES = {"minilm": 1e-4, "bert-base, 2 layers": 1e-5}
"""Low enough for the losses to stay far from 0: one of 0.001, as log of a sum minus a logit, is rounding in float32."""


def file_name(model: str) -> str:
    return "bert_base_2_layers.npz" if model == "bert-base, 2 layers" else f"{model}.npz"


def labels() -> np.ndarray:
    """(B,): the opinions' labels as indices."""
    return np.array([LABELS.index(label) for _, label in OPINIONS])


def rows_of_step(step: int) -> slice:
    """The opinions that step 0, 1, ... learns from: four at a time, and again from the first."""
    first = step * TEXTS_PER_STEP % len(OPINIONS)
    return slice(first, first + TEXTS_PER_STEP)


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float64 values of a parameter that no checkpoint has: uniform, around 1 for LayerNorm's weights, else 0.

    They are larger than a new model's, so that attention is far from uniform, and no bias is 0.
    """
    values = _random(name).uniform(-0.08, 0.08, shape)
    return values + 1 if name.endswith("LayerNorm.weight") else values


def pick_positions(name: str, gradient: np.ndarray) -> np.ndarray:
    """16 places in the flattened gradient, at random among those that are not 0: most tokens occur in no opinion."""
    places = np.flatnonzero(gradient)
    return places[_random(f"positions of {name}").randint(0, places.size, ENTRIES)]


def summary(name: str, gradient: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(18,) float64: the norm, the projection, and the entries at `positions` of the flattened gradient."""
    values = gradient.ravel().astype(np.float64)
    signs = np.where(_random(f"signs of {name}").random_sample(values.size) < 0.5, -1.0, 1.0)
    return np.array([np.linalg.norm(values), signs @ values, *values[positions]])


def _random(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))
