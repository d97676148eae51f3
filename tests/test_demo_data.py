"""The demo's opinions: balanced, clean, and too hard for a model that only counts words."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

DEMO = Path(__file__).parents[1] / "demo"
TOPICS = ["books", "films", "food", "gadgets", "places", "services"]
BAG_OF_WORDS_CEILING = 0.80


def read_opinions(name: str) -> list[tuple[str, str, str]]:
    """The (sentence, label, topic) of every row; an AssertionError for a row of another shape."""
    text = (DEMO / f"opinions_{name}.tsv").read_bytes().decode("utf-8")
    assert "\r" not in text and text.endswith("\n")
    header, *lines = text.removesuffix("\n").split("\n")
    assert header == "sentence\tlabel\ttopic"
    opinions = []
    for line in lines:
        sentence, label, topic = line.split("\t")
        opinions.append((sentence, label, topic))
    return opinions


TRAIN, DEV = read_opinions("train"), read_opinions("dev")


def words(sentence: str) -> list[str]:
    return re.findall(r"\w+", sentence.lower())


def test_there_are_enough_opinions_and_a_fifth_is_held_out():
    assert len(TRAIN) + len(DEV) >= 640
    assert len(DEV) / (len(TRAIN) + len(DEV)) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("part", [TRAIN, DEV], ids=["train", "dev"])
def test_labels_and_topics_are_balanced(part):
    counts = Counter((label, topic) for _, label, topic in part)
    assert set(counts) == {(label, topic) for label in ("negative", "positive") for topic in TOPICS}
    assert len(set(counts.values())) == 1


def test_sentences_are_clean_and_of_ordinary_length():
    for sentence, _, _ in TRAIN + DEV:
        assert 5 <= len(sentence.split()) <= 30, sentence
        assert sentence == " ".join(sentence.split()) and '"' not in sentence, sentence


def overlap(first: set[str], second: set[str]) -> float:
    """The share of the words of both that the two have in common (Jaccard index)."""
    return len(first & second) / len(first | second)


def test_no_two_sentences_are_nearly_the_same():
    sentences = [sentence for sentence, _, _ in TRAIN + DEV]
    bags = [set(words(sentence)) for sentence in sentences]
    for i, bag in enumerate(bags):
        for j in range(i):
            assert overlap(bag, bags[j]) < 0.45, f"{sentences[i]} / {sentences[j]}"


def test_the_new_sentences_are_new():
    known = [set(words(sentence)) for sentence, _, _ in TRAIN + DEV]
    new = (DEMO / "new_sentences.txt").read_text(encoding="utf-8").splitlines()
    assert len(new) == 8
    for sentence in new:
        assert max(overlap(set(words(sentence)), bag) for bag in known) < 0.45, sentence


def terms(sentence: str, longest: int) -> set[str]:
    """The words of a sentence and, up to `longest`, its runs of neighbouring words."""
    found = words(sentence)
    return {
        " ".join(found[i : i + size]) for size in range(1, longest + 1) for i in range(len(found) - size + 1)
    }


def shared_terms(part, longest: int) -> np.ndarray:
    """How many terms each sentence of `part` shares with each of the train part: (sentences, train sentences).

    These are the scalar products of the rows of the bag-of-words matrices, all that a linear model needs to
    know of them; the 1 stands for the bias, a term that is in every sentence.
    """
    train_terms = [terms(sentence, longest) for sentence, _, _ in TRAIN]
    return np.array(
        [
            [1.0 + len(found & known) for known in train_terms]
            for found in (terms(sentence, longest) for sentence, _, _ in part)
        ]
    )


def is_positive(part) -> np.ndarray:
    return np.array([label == "positive" for _, label, _ in part], dtype=np.float64)


def logistic_regression(similarity: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Minimises |w|^2 / 2 + strength * cross-entropy by Newton's method; returns a, (train sentences,).

    At the minimum the weights of the terms are w = x.T @ a with a = strength * (y - probability), x being
    the bag-of-words matrix: there are fewer sentences than terms, so it is a that is solved for.
    """
    a = np.zeros(len(y))
    for _ in range(10):
        logits = similarity @ a
        probability = 1 / (1 + np.exp(-logits))
        curvature = probability * (1 - probability)
        system = np.eye(len(y)) + strength * curvature[:, None] * similarity
        a = np.linalg.solve(system, strength * (curvature * logits + y - probability))
    probability = 1 / (1 + np.exp(-similarity @ a))
    np.testing.assert_allclose(a, strength * (y - probability), atol=1e-6 * strength)
    return a


@pytest.mark.parametrize("longest", [1, 2], ids=["words", "words and pairs"])
def test_a_bag_of_words_is_not_enough(longest):
    """Not even with the penalty that happens to suit the held-out part best."""
    y, y_dev = is_positive(TRAIN), is_positive(DEV)
    similarity, similarity_dev = shared_terms(TRAIN, longest), shared_terms(DEV, longest)
    accuracies = {}
    for strength in (0.1, 1.0, 10.0, 100.0):
        a = logistic_regression(similarity, y, strength)
        accuracies[strength] = np.mean((similarity_dev @ a > 0) == y_dev)
    assert np.mean((similarity @ a > 0) == y) > 0.99  # with little penalty it learned what it was shown,
    assert max(accuracies.values()) > 0.6  # and something that carries over
    assert max(accuracies.values()) < BAG_OF_WORDS_CEILING
    print({strength: round(float(accuracy), 3) for strength, accuracy in accuracies.items()})


@pytest.mark.peers
@pytest.mark.parametrize("longest", [1, 2], ids=["words", "words and pairs"])
def test_scikit_learn_agrees_that_it_is_not_enough(longest):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    counts = CountVectorizer(ngram_range=(1, longest), binary=True)
    model = make_pipeline(counts, LogisticRegression(max_iter=2000))
    search = GridSearchCV(model, {"logisticregression__C": [0.1, 1, 10, 100]}, cv=5)
    search.fit([sentence for sentence, _, _ in TRAIN], is_positive(TRAIN))
    accuracy = search.score([sentence for sentence, _, _ in DEV], is_positive(DEV))
    print(search.best_params_, round(float(accuracy), 3))
    assert accuracy < BAG_OF_WORDS_CEILING
