"""In-context learning: a decoder that is told what to do by k examples in its prompt (Brown et al. 2020, section 2).

Nothing is trained. Every label is written behind the prompt in turn, and that label wins whose tokens the model finds
likeliest:

    Text: a bore        log p(label | prompt) = sum_i log p(token_i | prompt, token_1 ... token_i-1)
    Label: negative

    Text: good film
    Label: ________
"""

from collections.abc import Sequence

import numpy as np

from minift.errors import InputError
from minift.nn import evaluating
from minift.tasks.documents import batch_of_tokens
from minift.tasks.text_generation import TextGeneration

QUESTION = "Text: {text}\nLabel:"
ANSWER = " {label}"
BETWEEN = "\n\n"


def prompt_of(examples: Sequence[tuple[str, str]], text: str) -> str:
    """The examples, each with its label, and the text without one."""
    shown = [QUESTION.format(text=each) + ANSWER.format(label=label) for each, label in examples]
    return BETWEEN.join([*shown, QUESTION.format(text=text)])


def score(
    model: TextGeneration, examples: Sequence[tuple[str, str]], texts: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """log p(label | the examples, text) for every text and label, (texts, labels).

    The best label of text i is `labels[scores[i].argmax()]`. Raises InputError where the prompt with a label is longer
    than the model's positions reach.
    """
    scores = []
    for text in texts:
        prompt = model.prompt(prompt_of(examples, text))
        answers = [model.tokenizer.pieces(ANSWER.format(label=label)) for label in labels]
        scores.append(log_likelihoods(model, prompt, answers))
    return np.array(scores)


def log_likelihoods(
    model: TextGeneration, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """log p(continuation | prompt) for each, in tokens, as one packed batch.

    Raises InputError where prompt and continuation are longer than the model's positions reach.
    """
    longest = len(prompt) + max(map(len, continuations))
    if longest > model.config.longest_text:
        raise InputError(
            f"the prompt with its examples and a label takes {longest} tokens; the model has positions for "
            f"{model.config.longest_text}: show fewer examples"
        )
    batch = batch_of_tokens([[*prompt, *tokens] for tokens in continuations])
    with evaluating(model):
        logits = model.answer(batch).numpy().astype(np.float64)  # (T, V)
    found = []
    for start, tokens in zip(batch.offsets[:-1] + len(prompt) - 1, continuations, strict=True):
        rows = logits[start : start + len(tokens)]  # the row before a token foretells it
        peak = rows.max(axis=1, keepdims=True)
        log_sum = peak[:, 0] + np.log(np.exp(rows - peak).sum(axis=1))
        found.append(float((rows[np.arange(len(tokens)), tokens] - log_sum).sum()))
    return found
