"""Each text for itself: what is said of it depends neither on chance nor on other texts, and not on the future."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from minift.data import Batch
from minift.diagnosis.case import Case, Heard, differ, select
from minift.diagnosis.finding import Finding, some
from minift.models.attention import SelfAttention
from minift.nn import Embedding


def evaluation_is_deterministic(case: Case) -> Iterator[Finding]:
    """In evaluation two runs on the same batch give the same numbers."""
    first, second = case.answers(case.few), case.answers(case.few)
    if differ(first, second):
        yield Finding(
            "dropout-in-evaluation",
            _place_of_difference(case, case.few, case.few) or "the model",
            f"two runs on the same batch differ by up to {np.abs(first - second).max():.3g}",
            "drop only while self.training is true, and let model.eval() reach every module",
        )


def positions(case: Case) -> Iterator[Finding]:
    """The place of a token is counted in its own text, from 0; so is what the model looks up, or turns by.

    RoBERTa's first row is that after the padding's, and behind a soft prompt the first place is its length.
    """
    lengths = np.diff(case.batch.offsets)
    expected = np.concatenate([np.arange(length) for length in lengths])
    mend = "count from 0 in every text: np.concatenate([np.arange(length) for length in lengths])"
    if (case.batch.positions != expected).any():
        text = (
            int(np.searchsorted(case.batch.offsets, np.argmax(case.batch.positions != expected), "right")) - 1
        )
        start, end = case.batch.offsets[text], case.batch.offsets[text + 1]
        said = " ".join(map(str, case.batch.positions[start:end][:4]))
        yield Finding("wrong-positions", "batch.positions", f"text {text} has positions {said} ...", mend)
        return
    few = case.few if len(case.few) > 1 else case.texts([0, 0])
    with case.evaluating(), case.listening() as heard:
        case.model(few)
    in_front = 0 if case.model.method is None else case.model.method.tokens_in_front
    wrong = []
    for call in heard:
        looked_up = isinstance(call.module, Embedding) and (
            "position" in call.path or call.path.endswith("wpe")
        )
        if looked_up:
            places = np.asarray(call.inputs[0])
            first = getattr(case.model.config, "first_position", 0)
        elif call.path == "rotary":
            places, first = np.asarray(call.inputs[1]), None
        else:
            continue
        texts = np.split(
            places, np.cumsum(np.diff(few.offsets) + (len(places) - few.tokens) // len(few))[:-1]
        )
        longest = max(texts, key=len)
        steady = all(not differ(text, longest[: len(text)], 1e-5) for text in texts)
        if looked_up:
            begins = longest[0] in (first, first + in_front)
        else:
            begins = bool(in_front) or bool((np.abs(longest[0] - 1) < 1e-5).all())
        if not steady or not begins:
            wrong.append(call.path)
    if wrong:
        yield Finding(
            "wrong-positions",
            some(list(dict.fromkeys(wrong))),
            "the places that it works with do not begin anew in every text",
            mend.replace("count", "take batch.positions, which count", 1),
        )


def texts_are_independent(case: Case) -> Iterator[Finding]:
    """A text alone gets the same answers as in a batch, wherever it stands there and whatever stands beside it.

    With dropout off, in evaluation as in training. The first module whose output differs while its inputs do not is at
    fault; where inputs differ already, it is the module around.
    """
    few = case.few
    numbers = list(range(len(few))) if len(few) > 1 else [0, 0]

    def texts(numbers: list[int]) -> Batch:
        return select(few, numbers, case.per_token)

    together = texts(numbers)
    for mode in (case.evaluating, case.quiet):
        with case.untouched(), mode():
            each = case.answers_of_each(together, np.array(case.model(together).data))
            backwards = texts(numbers[::-1])
            turned = case.answers_of_each(backwards, np.array(case.model(backwards).data))[::-1]
            alone = [np.array(case.model(texts([number])).data) for number in numbers]
        in_batch = [i for i, number in enumerate(numbers) if differ(each[i], alone[i])]
        in_order = [i for i, number in enumerate(numbers) if differ(each[i], turned[i])]
        if in_batch or in_order:
            break
    else:
        return
    name, where = "batch-dependent", "the model"
    place = _guilty(case, together, texts([numbers[-1]]), mode)
    if place is not None:
        where = place.path or "the model"
        if isinstance(place.module, SelfAttention):
            name = "attention-across-texts"
    yield Finding(
        name,
        where,
        f"{len(in_batch)} of {len(numbers)} texts get other answers alone than in the batch, "
        f"{len(in_order)} in another order",
        "attention must stay inside batch.segments" if name != "batch-dependent" else
        "compute with each text's own rows alone: no mean over the batch, no fixed row numbers",
    )  # fmt: skip


def future_is_hidden(case: Case) -> Iterator[Finding]:
    """In a decoder what is said of a token does not change when tokens behind it do."""
    if not case.causal:
        return
    lengths = np.diff(case.few.offsets)
    text = select(case.few, [int(lengths.argmax())], case.per_token)
    if text.tokens < 2:
        return
    cut = text.tokens // 2
    ids = text.ids.copy()
    ids[cut:] = (ids[cut:] + 1 + np.arange(len(ids) - cut)) % case.model.config.vocab_size
    with case.evaluating():
        outputs = []
        for batch in (text, replace(text, ids=ids)):
            with case.listening() as heard:
                case.model(
                    replace(batch, labels=np.zeros(batch.tokens, np.int64) if case.per_token else None)
                )
            outputs.append(heard)
    for one, other in zip(*outputs, strict=False):
        if not isinstance(one.output, np.ndarray) or one.module is None or one.output.ndim != 2:
            continue
        behind = text.tokens - cut
        if len(one.output) < text.tokens or one.output.shape != other.output.shape:
            continue
        seen = len(one.output) - behind
        if differ(one.output[:seen], other.output[:seen], 1e-4):
            yield Finding(
                "future-leak",
                one.path or "the model",
                f"the first {cut} tokens of a text get other vectors when those behind them change",
                "attend with causal=True in every layer",
            )
            return


def _place_of_difference(case: Case, one: Batch, other: Batch) -> str | None:
    with case.evaluating():
        with case.listening() as first:
            case.model(one)
        with case.listening() as second:
            case.model(other)
    for a, b in zip(first, second, strict=False):
        if isinstance(a.output, np.ndarray) and differ(a.output, b.output, 1e-6):
            return a.path
    return None


def _guilty(case: Case, together: Batch, last: Batch, mode) -> Heard | None:
    """The call that first says something else of the last text of a batch than of that text alone."""
    runs = []
    with case.untouched(), mode():
        for batch in (together, last):
            with case.listening() as heard:
                case.model(batch)
            runs.append(heard)
    around = {path: module for path, module in case.model.named_modules()}

    def last_rows(value, count):
        return value[len(value) - count :] if len(value) >= count else value

    for a, b in zip(*runs, strict=False):
        if a.module is None or not isinstance(a.output, np.ndarray) or not isinstance(b.output, np.ndarray):
            continue
        if not differ(last_rows(a.output, len(b.output)), b.output):
            continue
        pairs = [
            (x, y)
            for x, y in zip(a.inputs, b.inputs, strict=False)
            if isinstance(x, np.ndarray) and x.dtype.kind == "f"
        ]
        if isinstance(a.module, SelfAttention) or not any(differ(last_rows(x, len(y)), y) for x, y in pairs):
            return a
        path = a.path.rpartition(".")[0]
        return Heard(path, around.get(path), ())
    return None
