# %% [markdown]
# # 3. The doctor
#
# A program that is wrong usually says so. A fine-tuning that is wrong trains. The loss goes down, the log looks like
# every log, and a week later somebody wonders why the model is no better than a coin. What is wrong is one line: a
# label one place too far, an optimizer made a moment too early, a sum over the wrong axis.
#
# Such bugs are found by *invariants*: sentences that hold in every right training, and that can be tested in a second.
# "A text's answer does not depend on its neighbours in the batch." "The first step of AdamW is as long as the learning
# rate." This chapter plants bugs, shows how well they hide, and catches each by its invariant, in a few lines. Then it
# asks `minift.doctor`, which knows them all.
#
# The bugs live next door, in `tutorials/bug_zoo/`: 35 kinds, each in three places, with what the right code is. Most
# are what users of fine-tuning libraries report, again and again. Run this file from top to bottom (`python
# tutorials/03_the_doctor.py`, less than a minute) or cell by cell.

# %%
import itertools
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from bug_zoo import PLANTS

import minift
from minift.gradient_check import check_gradients
from minift.nn import evaluating

np.set_printoptions(precision=3, suppress=True, linewidth=110)
folder = Path(tempfile.mkdtemp())
in_the_zoo = {(plant.name, plant.place): plant for plant in PLANTS}


@contextmanager
def bug(name, place):
    """The set-up (model, batch, optimizer) with this bug inside the block; as it should be, behind it."""
    plant = in_the_zoo[name, place]
    print(f"{name}: {plant.description}")
    with plant.plant(plant.make(folder)) as setup:
        yield setup


def right(name, place):
    """The same set-up without the bug."""
    return in_the_zoo[name, place].make(folder)


def train(setup, steps=60):
    """The losses of some steps on the set-up's only batch."""
    model, batch, optimizer = setup
    minift.manual_seed(0)
    losses = []
    for _ in range(steps):
        loss = model.loss(model(batch), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def curve(losses):
    """Every tenth of them, as a log would show it."""
    return " ".join(f"{loss:.2f}" for loss in losses[::10] + losses[-1:])


def ask_the_doctor(name, place):
    """Print what `minift.doctor` says of a fresh set-up with this bug."""
    plant = in_the_zoo[name, place]
    with plant.plant(plant.make(folder)) as setup:
        findings = minift.doctor(*setup)
    for finding in findings:
        print(f"doctor   {finding.name}, {finding.where}: {finding.found}. {finding.mend}")
    assert name in [finding.name for finding in findings]


def part(batch, first, last):
    """The batch of its texts from `first` to `last` - 1."""
    offsets = batch.offsets[first : last + 1]
    tokens = slice(offsets[0], offsets[-1])
    one_a_token = len(batch.labels) == batch.tokens
    return replace(
        batch,
        ids=batch.ids[tokens],
        token_types=batch.token_types[tokens],
        positions=batch.positions[tokens],
        offsets=offsets - offsets[0],
        labels=batch.labels[tokens if one_a_token else slice(first, last)],
    )


# %% [markdown]
# ## Labels that are shifted twice
#
# A language model learns which token comes next, so the label of a token is the one after it. Some libraries expect you
# to shift the labels, some do it for you, and whoever gets both learns the next token but one. Nothing looks odd: there
# *is* a regularity from a token to the next but one. The loss falls as nicely as the right one.

# %%
print("right   ", curve(train(right("shifted-labels", "shifted twice"))))
with bug("shifted-labels", "shifted twice") as setup:
    print("with bug", curve(train(setup)))

# %% [markdown]
# The invariant needs no training at all: in each text, `labels[t] == ids[t + 1]`. Look at one batch. Always look at one
# batch.

# %%
with bug("shifted-labels", "shifted twice") as setup:
    model, batch, _ = setup
    start, end = batch.segments[0]
    print("reads ", *model.tokenizer.tokens(batch.ids[start:end]))
    labelled = batch.labels[start:end]
    print("labels", *model.tokenizer.tokens(labelled[labelled != -100]))
    agree = np.mean(labelled[:-1] == batch.ids[start + 1 : end])
    print(f"labels[t] == ids[t + 1] for {agree:.0%} of the tokens")
    assert agree < 0.5
ask_the_doctor("shifted-labels", "shifted twice")

# %% [markdown]
# ## An optimizer that was made too early
#
# The optimizer holds what the model had when it was made. A head that comes later is random now and stays random. The
# body bends itself around the random head, so the loss falls all the same, only later.

# %%
place = "optimizer of the body"
print("right   ", curve(train(right("not-in-optimizer", place))))
with bug("not-in-optimizer", place) as setup:
    print("with bug", curve(train(setup)))
    held = {id(parameter) for parameter in setup.optimizer.parameters}
    missing = [
        name for name, each in setup.model.named_parameters() if each.requires_grad and id(each) not in held
    ]
    print("trainable, and in no group of the optimizer:", *missing)
    assert "classifier.weight" in missing
ask_the_doctor("not-in-optimizer", place)

# %% [markdown]
# ## LoRA that never moves, and a loss that falls
#
# LoRA adds the product of two small matrices to a frozen one (`minift/methods/lora.py`). One begins random, the other
# at 0. If both begin at 0, the gradient of each, a product with the other, is 0: they never move. But beside them the
# head is trained, and so the loss falls, as far as a head alone can bring it.
#
# Invariant: after a step every trainable parameter has moved.

# %%
place = "lora a zero too"
print("right   ", curve(train(right("does-not-move", place))))
with bug("does-not-move", place) as setup:
    before = {name: each.data.copy() for name, each in setup.model.named_parameters() if each.requires_grad}
    print("with bug", curve(train(setup)))
    now = dict(setup.model.named_parameters())
    stuck = [name for name, data in before.items() if (now[name].data == data).all()]
    print(f"{len(stuck)} of {len(before)} trainable parameters are where they were: {stuck[0]} and others")
    assert stuck == [name for name in before if ".lora_" in name]
ask_the_doctor("does-not-move", place)

# %% [markdown]
# ## A text that reads its neighbours
#
# Texts lie in one row. If attention is not told where one ends, each reads all the others, in training those of its
# batch, and in use whatever it is served with. (With padding, the same bug is a forgotten mask.) A batch learns by
# heart even faster this way, and the metric of a dev set depends on the batch size.
#
# Invariant: a text alone gives what it gives among others.


# %%
def what_neighbours_change(setup):
    """The largest difference in what the model says of the first text, among others and alone."""
    model, batch, _ = setup
    with evaluating(model):
        among, alone = model(batch).data, model(part(batch, 0, 1)).data
    return float(np.abs(among[: len(alone)] - alone).max())


place = "one long text"
difference = what_neighbours_change(right("attention-across-texts", place))
print(f"right    {difference:.1e}")
assert difference < 1e-5
with bug("attention-across-texts", place) as setup:
    difference = what_neighbours_change(setup)
    print(f"with bug {difference:.1e}")
    assert difference > 1e-3
ask_the_doctor("attention-across-texts", place)

# %% [markdown]
# ## Labels dealt out to other texts
#
# The texts were shuffled and the labels were not. The loss goes down to nothing: a model with more weights than there
# are texts learns anything by heart, and a random label takes only a little longer than a right one. What does not
# move is the metric, and that only on texts which were not learned from. So hold texts back:


# %%
def learn_some(setup):
    """Learn from the first 64 texts of the batch; the losses, and how often these and others are right afterwards."""
    learned, unseen = part(setup.batch, 0, 64), part(setup.batch, 64, 256)
    losses = train(setup._replace(batch=learned), steps=100)
    with evaluating(setup.model):
        accuracy = [
            (setup.model(each).data.argmax(axis=1) == each.labels).mean() for each in (learned, unseen)
        ]
    return losses, accuracy


place = "texts without their labels"
losses, (learned, unseen) = learn_some(right("labels-shuffled", place))
print(f"right    {curve(losses)}  accuracy on what was learned {learned:.2f}, on the rest {unseen:.2f}")
assert unseen > 0.8
with bug("labels-shuffled", place) as setup:
    losses, (learned, unseen) = learn_some(setup)
    print(f"with bug {curve(losses)}  accuracy on what was learned {learned:.2f}, on the rest {unseen:.2f}")
    assert learned > 0.8 and unseen < 0.7
ask_the_doctor("labels-shuffled", place)

# %% [markdown]
# ## A mean of means
#
# A large batch does not fit into memory, so one adds up the gradients of small ones. The loss of each is a mean over
# its labels, and the mean of these means is not the mean over all labels, unless all have equally many: tokens of
# short texts count for more. (transformers had this for years; pull request 34191 mended it in October 2024.)
#
# Invariant: however a batch is cut, the gradients of its parts, each times its share of the labels, add up to that of
# the whole.


# %%
def gradient(model, batch):
    """All gradients, end to end."""
    model.eval()  # no dropout, which would differ
    model.loss(model(batch), batch).backward()
    found = np.concatenate([each.grad.ravel() for each in model.parameters() if each.grad is not None])
    model.train()
    model.zero_grad()
    return found


place = "over the sentences"
setup = right("mean-of-means", place)


def disagreement(model, batch):
    """How far the texts' gradients, by their shares of the labels, are from the whole batch's, in parts of it."""
    texts = [part(batch, text, text + 1) for text in range(len(batch))]
    together = sum(text.targets / batch.targets * gradient(model, text) for text in texts)
    whole = gradient(model, batch)
    return np.linalg.norm(together - whole) / np.linalg.norm(whole)


print(f"right: {disagreement(setup.model, setup.batch):.1e}")
assert disagreement(setup.model, setup.batch) < 1e-5
with bug("mean-of-means", place) as setup:
    print(f"with bug: {disagreement(setup.model, setup.batch):.1e}")
    assert disagreement(setup.model, setup.batch) > 1e-2
ask_the_doctor("mean-of-means", place)

# %% [markdown]
# ## AdamW without its correction
#
# AdamW's two means begin at 0 and are therefore too small at first, the mean of the squares much more so than that of
# the gradients. Both are divided by 1 - b^t. Without that the first step is (1 - b1) / sqrt(1 - b2) = 3.2 times too
# long, at the moment when the head knows nothing; a warm-up hides it.
#
# Invariant: the first step of every weight is as long as the rate, whatever its gradient, but for the decay.

# %%
with bug("missing-bias-correction", "of both means") as setup:
    model, batch, optimizer = setup
    weight = model.classifier.weight
    before = weight.data.copy()
    model.loss(model(batch), batch).backward()
    optimizer.step()
    rate = optimizer.param_groups[0]["lr"]
    length = float(np.median(np.abs(weight.data - before))) / rate
    print(f"first step: {length:.2f} times the rate")
    np.testing.assert_allclose(length, (1 - 0.9) / np.sqrt(1 - 0.999), rtol=0.01)
ask_the_doctor("missing-bias-correction", "of both means")

# %% [markdown]
# ## A backward that does not fit its forward
#
# Half of the product rule is missing in the backward of an activation. The forward is right, the evaluation is right,
# and a gradient that is wrong in one factor still goes downhill. Nobody would look for it.
#
# Invariant: finite differences (chapter 2).

# %%
place = "half of the product rule"
print("right   ", curve(train(right("wrong-gradient", place))))
with bug("wrong-gradient", place) as setup:
    print("with bug", curve(train(setup)))
    found = []
    with minift.recording():
        loss = setup.model.loss(setup.model(setup.batch), setup.batch)
    for step in minift.trace(loss, setup.model):
        for check in check_gradients(step):
            if not check.right:
                print(f"{step.operation} in {step.module}")
                print(f"  the backward says {check.said:+.2e}, measured {check.measured:+.2e}")
                found.append(step.operation)
    assert found == ["gelu_of_a_constant_phi"]
ask_the_doctor("wrong-gradient", place)

# %% [markdown]
# ## Why topological order?
#
# The question that readers of micrograd ask most. While we are at wrong gradients, here is the answer as a bug. An
# operation may hand its gradient on only when all that used its output has sent its share. In
#
#     y = x x        u = 2 y        z = u + y
#
# y is used twice. Whoever walks down a branch to its end before the others comes to y with u's share alone, and again
# with both:

# %%
X = 3.0
SLOPES = {  # of each operation by each of its inputs
    "z": {"u": 1.0, "y": 1.0},
    "u": {"y": 2.0},
    "y": {"x": 2 * X},
}


def depth_first(name, gradients):
    """Hand on at once what has come so far."""
    for parent, slope in SLOPES.get(name, {}).items():
        gradients[parent] = gradients.get(parent, 0.0) + slope * gradients[name]
        depth_first(parent, gradients)
    return gradients


def newest_first():
    """Each operation once, the newest first: what uses an output is always newer than what made it."""
    gradients = {"z": 1.0}
    for name in ("z", "u", "y"):
        for parent, slope in SLOPES[name].items():
            gradients[parent] = gradients.get(parent, 0.0) + slope * gradients[name]
    return gradients


x = minift.Tensor([X], requires_grad=True)
y = x * x
(2.0 * y + y).sum().backward()
wrong, good = depth_first("z", {"z": 1.0})["x"], newest_first()["x"]
print(f"dz/dx = 6 x = {6 * X}; depth first {wrong}, newest first {good}, minift {x.grad[0]}")
assert good == x.grad[0] == 6 * X and wrong == 30.0

# %% [markdown]
# Depth first, x is sent 2 · 6 = 12 when y has only u's share, 2; and then, when y has both, 3 · 6 = 18 more: 30. A
# recursion that sends on only what is new would be right, and visit a node once for each path to it, which in a
# transformer of 12 layers with two residual connections each are 2^24 and more.

# %% [markdown]
# ## The zoo
#
# All of its bugs. `tutorials/bug_zoo/` has each as a few lines, with the right code beside it, and the tests ask the
# doctor to name them all, and to say nothing of a set-up without a bug.

# %%
for name, plants in itertools.groupby(PLANTS, key=lambda plant: plant.name):
    print(name)
    for plant in plants:
        print(
            f"    {plant.place} ({' '.join([plant.make.func.__name__, *plant.make.args])}): {plant.description}"
        )
        print(f"        right: {plant.right}")
assert len({plant.name for plant in PLANTS}) == 35 and len(PLANTS) == 3 * 35

# %% [markdown]
# ## What a doctor does not know
#
# When the doctor first met this zoo, it named 92 of the 105; the rest it learned here. So it was asked about ten more
# bugs (`tests/blind_bugs.py`), by somebody who had not read it. It named three. Of two it said that the loss was wrong,
# not in what, and to five it had nothing to say: a softmax in the model and another in the loss, layers in a plain
# Python list, tags that lay one token beside their words, an `ignore_index` that was a class, and masks that were put
# into a copy. It knows them now, and the next five it will not. Its silence is no proof.

# %% [markdown]
# ## What to do about it
#
# - Look at one batch, as text: ids, labels, where each text ends.
# - The loss of a new head should begin at log C. Compute it before the first step.
# - Learn one batch by heart. What cannot do that cannot do anything.
# - And ask the doctor, with your own model, a batch of your own data and your optimizer, before the first long run:
#   `minift.doctor(model, batch, optimizer)` gives a list, empty if all is well.
