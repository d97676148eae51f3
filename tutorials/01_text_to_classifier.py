# %% [markdown]
# # 1. From a line of text to a trained classifier
#
# A program that reads "I would watch it again tomorrow." and answers "positive" is a function: text goes in, a
# number for each label comes out. Between the two stand some 22 million numbers, the *weights*. Fine-tuning changes
# them a little, many times, until the answers are right. This chapter opens the function, looks at every part of it,
# and then changes its weights.
#
# You need Python and a little linear algebra: what a matrix product is, and what a derivative is. Run the file from
# top to bottom (`python tutorials/01_text_to_classifier.py`), or cell by cell in an editor that knows `# %%` (VS
# Code, PyCharm, or Jupyter with jupytext). Whatever is claimed here is printed or asserted, so change things and
# see.

# %%
import time
from pathlib import Path

import numpy as np

import minift
from minift import ops

np.set_printoptions(precision=3, suppress=True, linewidth=110)

# %% [markdown]
# ## The model
#
# `minilm` is a BERT (Devlin et al. 2019): an *encoder*, which turns each word of a text into a vector that depends
# on all the other words. It was trained on large amounts of text by others; we start from their weights. On top of
# it stands a new *head*, one small matrix that turns a vector into one number per label. Its values are random:
# `load` says so. The seed makes the randomness repeatable.

# %%
minift.manual_seed(0)
model = minift.load("minilm", labels=["negative", "positive"])
model.eval()  # no dropout for now; training comes later

config = model.bert.config
H, N, F = config.hidden_size, config.num_attention_heads, config.intermediate_size
D = H // N
parameters = dict(model.named_parameters())
weights_in_all = sum(parameter.data.size for parameter in parameters.values())
print(f"{weights_in_all:,} weights in {len(parameters)} arrays; {config.num_hidden_layers} layers")
print(f"H = {H} numbers per token, N = {N} heads of D = {D}, F = {F} inside the feed-forward network")
assert N * D == H

# %% [markdown]
# ## Text to ids
#
# A model computes with numbers, so a text is first cut into *tokens* from a fixed vocabulary of 30,522, and each
# token becomes its row number there, its *id*. A common word is one token. A rare word is cut into pieces, and a
# piece that continues a word begins with `##`. Two tokens are added: `[CLS]` before the text, whose vector will
# stand for the whole text, and `[SEP]` after it.
#
# Several texts go through the model at once, as a *batch*. Texts differ in length; here they are simply laid one
# after the other in a single row of T tokens, and `offsets` says where each text begins. `positions` counts the
# tokens of each text from 0.

# %%
texts = ["A film that I would happily watch again.", "Unwatchable."]
batch = model.encode(texts)
tokens = model.tokenizer.tokens(batch.ids)
T, B = len(batch.ids), len(batch)

print(f"{'text':>4} {'position':>8} {'id':>6}  token")
for text, (start, end) in enumerate(batch.segments):
    for t in range(start, end):
        print(f"{text:>4} {batch.positions[t]:>8} {batch.ids[t]:>6}  {tokens[t]}")
print(f"ids {batch.ids.shape}, positions {batch.positions.shape}, offsets {batch.offsets} for {B} texts")
assert batch.ids.shape == batch.positions.shape == (T,)
assert batch.offsets[0] == 0 and batch.offsets[-1] == T
assert all(tokens[start] == "[CLS]" and tokens[end - 1] == "[SEP]" for start, end in batch.segments)

# %% [markdown]
# ## Ids to vectors: the embeddings
#
# An *embedding* is a table with one row per id; looking up is indexing. Three tables are used: what the token is,
# where in its text it stands, and whether it belongs to the first or the second text of a pair (here always the
# first, 0). The three rows are added, and the sum is *layer-normalised*: shifted and scaled to mean 0 and variance
# 1, then multiplied by one learned vector and added to another. Normalising keeps the numbers of every layer in the
# same range.
#
# The result is a matrix with a row per token, (T, H). It stays (T, H) through all layers.

# %%
embeddings = model.bert.embeddings
summed = (
    embeddings.word_embeddings.weight.data[batch.ids]
    + embeddings.position_embeddings.weight.data[batch.positions]
    + embeddings.token_type_embeddings.weight.data[batch.token_types]
)  # (T, H)


def layer_norm(x, module):
    """Each row to mean 0 and variance 1, then times the module's weight plus its bias."""
    mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)  # (T, 1)
    return (x - mean) / np.sqrt(variance + module.eps) * module.weight.data + module.bias.data


x = embeddings(embeddings.word_embeddings(batch.ids), batch)
print("embeddings:", x)
assert x.shape == (T, H)
np.testing.assert_allclose(x.data, layer_norm(summed, embeddings.LayerNorm), atol=1e-5)

# %% [markdown]
# `x` is a `Tensor`: an array (`x.data`) that also remembers which operation made it, in which module. That memory is
# what will carry gradients back, later.
#
# ## One layer, part 1: attention
#
# So far each row knows only its own token. *Attention* lets tokens look at each other (Vaswani et al. 2017, section
# 3.2). Three matrices turn each row into a *query* (what am I looking for?), a *key* (what do I have to offer?) and
# a *value* (what do I give?).

# %%
layer = model.bert.encoder.layer[0]
q = layer.attention.self.query(x)  # (T, H)
k = layer.attention.self.key(x)  # (T, H)
v = layer.attention.self.value(x)  # (T, H)
print("query", q.shape, "key", k.shape, "value", v.shape)

query = layer.attention.self.query
np.testing.assert_allclose(q.data, x.data @ query.weight.data.T + query.bias.data, atol=1e-5)

# %% [markdown]
# The H columns are split among N *heads*, D columns each, and every head does the same on its own: the score of
# tokens i and j is the dot product of query i and key j, divided by sqrt(D) so that it does not grow with D.
# `softmax` turns the scores of row i into positive weights with sum 1: exp(score), divided by the sum over the row.
# Token i then receives the weighted mean of the values.
#
# This is done inside each text. Here are the weights of one head in the first text: row i says how much token i
# takes from each token of the text.


# %%
def softmax(scores):
    """Over the last axis. Subtracting the largest changes nothing but keeps exp from overflowing."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def attention_weights(text, head):
    """How much each token of the text takes from each: (tokens, tokens)."""
    rows = slice(*batch.segments[text])
    columns = slice(head * D, (head + 1) * D)
    return softmax(q.data[rows, columns] @ k.data[rows, columns].T / np.sqrt(D))


text, head = 0, 4
weights = attention_weights(text, head)
names = tokens[slice(*batch.segments[text])]
print(f"attention of head {head} of layer 0, {weights.shape}; each row sums to 1")
print(" " * 9 + "".join(f"{name:>8}" for name in names))
for name, row in zip(names, weights, strict=True):
    print(f"{name:>8} " + "".join(f"{weight:8.2f}" for weight in row))
np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)

# %% [markdown]
# Over all texts and heads this is the whole of attention. `ops.attention` computes the same without ever holding a
# large matrix of weights; here we hold it and compare.

# %%
gathered = np.zeros((T, H), np.float32)
for text, (start, end) in enumerate(batch.segments):
    for head in range(N):
        columns = slice(head * D, (head + 1) * D)
        gathered[start:end, columns] = attention_weights(text, head) @ v.data[start:end, columns]

attended = ops.attention(q, k, v, batch.segments, batch.segments, heads=N)
assert attended.shape == (T, H)
np.testing.assert_allclose(attended.data, gathered, atol=1e-5)
np.testing.assert_allclose(layer.attention.self(x, batch.segments).data, gathered, atol=1e-5)

# %% [markdown]
# A text sees nothing of its neighbours in the batch: the first text alone gives the same rows.

# %%
alone = model.encode(texts[0])
with_neighbour = model.bert(batch).data[: alone.tokens]
print("largest difference that the neighbour makes:", np.abs(model.bert(alone).data - with_neighbour).max())
np.testing.assert_allclose(model.bert(alone).data, with_neighbour, atol=1e-5)

# %% [markdown]
# ## One layer, part 2: what follows the attention
#
# The heads are mixed by another matrix, and the result is *added* to what went in (a residual connection: the layer
# has only to learn what to change) and normalised. Then each row goes on by itself through the *feed-forward
# network*: a matrix to F numbers, the bend `gelu`, and a matrix back to H; again added and normalised. Without the
# bend the two matrices would be as good as one.

# %%
mixed = layer.attention.output.dense(attended)  # (T, H)
after_attention = layer.attention.output.LayerNorm(mixed, residual=x)  # (T, H)
widened = ops.gelu(layer.intermediate.dense(after_attention))  # (T, F)
narrowed = layer.output.dense(widened)  # (T, H)
y = layer.output.LayerNorm(narrowed, residual=after_attention)  # (T, H)
print("attention", after_attention.shape, "-> feed-forward", widened.shape, "->", y.shape)
np.testing.assert_array_equal(y.data, layer(x, batch.segments).data)

# %% [markdown]
# That is a transformer layer. BERT is a stack of them, with the same shapes and different weights.

# %%
for number, layer in enumerate(model.bert.encoder.layer):
    x = layer(x, batch.segments)
    print(f"layer {number}: {x.shape}, first row begins {x.data[0, :5]}")
np.testing.assert_array_equal(x.data, model.bert(batch).data)

# %% [markdown]
# ## From vectors to an answer: pooler and head
#
# One vector per text is needed: that of `[CLS]`, which has looked at the whole text in every layer. The *pooler*
# sends it through one more matrix and `tanh`. The head, one matrix (C, H) and a bias, makes C numbers of it, the
# *logits*: the higher, the likelier the label.
#
# Since nobody reads the other tokens' vectors, the model leaves them out of its last layer: all tokens are looked at
# there, but only `[CLS]` looks (`Encoder`). The numbers are the same up to the last digit.

# %%
first = x[batch.offsets[:-1]]  # (B, H): the rows of [CLS]
pooled = model.bert.pooler.dense(first).tanh()  # (B, H)
logits = model.classifier(pooled)  # (B, C)
print("first", first.shape, "-> pooled", pooled.shape, "-> logits", logits.shape)
print(logits.data)
np.testing.assert_allclose(logits.data, model(texts).data, atol=1e-6)

# %% [markdown]
# `softmax` makes probabilities of the logits. The head is random, so they mean nothing yet.

# %%
probabilities = softmax(logits.data)  # (B, C)
for text, row in zip(texts, probabilities, strict=True):
    print(f"{row[1]:.3f} positive  {text}")
np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)

# %% [markdown]
# ## How wrong is it? Cross-entropy
#
# The *loss* is one number for how wrong the answers are. Of the probability p that a text's true label was given,
# take -log(p): 0 if the model was certain and right, and ever larger the less it believed in the truth. The loss is
# the mean over the texts. Whoever gives both labels 1/2 has a loss of log(2) = 0.693, which is about where we start.

# %%
labels = ["positive", "negative"]
indices = [model.labels.index(label) for label in labels]
by_hand = -np.log(probabilities[range(B), indices]).mean()
loss = minift.cross_entropy(model(texts), labels)
print(f"by hand {by_hand:.6f}, minift.cross_entropy {loss.item():.6f}, knowing nothing {np.log(2):.6f}")
np.testing.assert_allclose(loss.item(), by_hand, rtol=1e-5)

# %% [markdown]
# ## Which weights are to blame? The backward pass
#
# For each of the 22 million weights we want its *gradient*: by how much would the loss rise if this weight rose a
# little? Trying each would take 22 million forward passes. The chain rule needs one pass, backwards: every operation
# is told how the loss depends on its output (`dy`) and works out how the loss depends on each of its inputs.
#
# `loss.backward()` does that. `loss.backward_steps()` does the same one operation at a time, so that we can watch.
# It begins at the loss and ends at the embeddings.

# %%
steps = [
    (step.node.operation, step.node.module, step.node.shape, float(np.linalg.norm(step.gradient)))
    for step in loss.backward_steps()
]
print(f"{len(steps)} operations; the gradient of the loss by the output of each:")
print(f"{'operation':<13} {'module':<47} {'shape':<10} norm of dy")
for number, (operation, module, shape, norm) in enumerate(steps):
    if number < 10 or number >= len(steps) - 10:
        print(f"{operation:<13} {module:<47} {shape!s:<10} {norm:.6f}")
    elif number == 10:
        print("...")
assert steps[0][0] == "cross_entropy" and steps[0][3] == 1.0
assert steps[-1][1].startswith("bert.embeddings")

# %% [markdown]
# Stepping is the real thing, not a replay: `backward()` gives the same gradients to the last bit.

# %%
stepped = {name: parameter.grad for name, parameter in model.named_parameters()}
model.zero_grad()
minift.cross_entropy(model(texts), labels).backward()
for name, parameter in model.named_parameters():
    np.testing.assert_array_equal(parameter.grad, stepped[name], err_msg=name)

# %% [markdown]
# ## What `.grad` is
#
# After the pass each parameter has `.grad`, an array of its own shape. Its meaning can be tested on any weight:
# nudge it up and down a little, and the loss changes by the gradient times the nudge. We do so in float64, because
# the difference of two nearly equal float32 numbers is mostly rounding.

# %%
model.to(np.float64)  # this forgets the gradients, too


def loss_now():
    """The loss of the two texts with the weights as they are."""
    with minift.no_grad():
        return minift.cross_entropy(model(texts), labels).item()


minift.cross_entropy(model(texts), labels).backward()
for name, index in [
    ("classifier.weight", (1, 0)),
    ("bert.encoder.layer.3.intermediate.dense.weight", (5, 7)),
    ("bert.embeddings.word_embeddings.weight", (batch.ids[2], 0)),
]:
    weight = parameters[name]
    value, nudge = weight.data[index], 1e-5
    weight.data[index] = value + nudge
    above = loss_now()
    weight.data[index] = value - nudge
    below = loss_now()
    weight.data[index] = value
    slope = (above - below) / (2 * nudge)
    print(f"{name}{[int(i) for i in index]}: measured {slope:+.9f}, .grad {weight.grad[index]:+.9f}")
    np.testing.assert_allclose(weight.grad[index], slope, rtol=1e-4, atol=1e-9)

# %% [markdown]
# The table of words has a row for each of 30,522 tokens, but only the rows of our own tokens took part. All the
# others have a gradient of exactly 0.

# %%
rows_with_gradient = np.flatnonzero(np.abs(embeddings.word_embeddings.weight.grad).sum(axis=1))
print(
    f"{len(rows_with_gradient)} of {config.vocab_size:,} rows have a gradient:",
    *model.tokenizer.tokens(rows_with_gradient),
)
assert set(rows_with_gradient) == set(batch.ids)

# %% [markdown]
# ### A gradient that is 0: the bias of the keys
#
# The key of token j is W x_j + b. So b adds the same number, q_i . b, to every score of row i, and softmax does not
# see what all scores share: exp(s + c) / sum exp(s + c) = exp(s) / sum exp(s). Hence the loss does not depend on b,
# and its true gradient is 0. What is computed is the rounding error of adding up to 0. Measured, beside the bias of
# the queries:

# %%
for number, layer in enumerate(model.bert.encoder.layer):
    attention = layer.attention.self
    of_key, of_query = np.linalg.norm(attention.key.bias.grad), np.linalg.norm(attention.query.bias.grad)
    print(f"layer {number}: norm of the gradient of key.bias {of_key:.1e}, of query.bias {of_query:.1e}")
    assert of_key < 1e-12 * of_query

before = loss_now()
noise = np.random.default_rng(0).normal(size=H)
for name in ("key", "query"):
    bias = parameters[f"bert.encoder.layer.0.attention.self.{name}.bias"]
    kept = bias.data
    bias.data = kept + noise
    change = abs(loss_now() - before)
    bias.data = kept
    print(f"random numbers added to {name}.bias of layer 0 change the loss by {change:.1e}")
    assert (change < 1e-12) == (name == "key")

# %% [markdown]
# ## One step down: AdamW
#
# The gradient points uphill, so each weight takes a step the other way. How far? AdamW (Loshchilov and Hutter 2019)
# keeps for each weight two running means, m of its gradients and v of their squares, and steps by about m / sqrt(v):
# the direction of late, whatever the size of the gradient. Both begin at 0; dividing by 1 - b^t makes up for it.
# *Weight decay* pulls each weight a little towards 0.
#
# Here is the first step (t = 1) of one weight by hand, and of all of them by minift.

# %%
optimizer = minift.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
weight = parameters["classifier.weight"]
w, g = weight.data[1, 0], weight.grad[1, 0]

b1, b2, eps, lr, t = 0.9, 0.999, 1e-8, 5e-5, 1
m = b1 * 0 + (1 - b1) * g
v = b2 * 0 + (1 - b2) * g**2
step_size = lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
by_hand = w - lr * 0.01 * w - step_size

optimizer.step()
print(f"gradient {g:+.6f}: from {w:.9f} to {by_hand:.9f} by hand, {weight.data[1, 0]:.9f} by minift")
np.testing.assert_allclose(weight.data[1, 0], by_hand, rtol=1e-12)
print(f"the first step is as long as the learning rate, {lr}: {abs(step_size):.7f}")
print(f"and the loss went from {before:.6f} to {loss_now():.6f}")
np.testing.assert_allclose(abs(step_size), lr, rtol=1e-3)
assert loss_now() < before

# %% [markdown]
# ## Training
#
# Training is this, again and again: a few texts, forward, loss, backward, step. Now with 24 labelled opinions, and 8
# others which the model will not learn from, to see whether it learns more than the sentences by heart. (A real data
# set has thousands; `minift finetune` takes a file of them.)

# %%
OPINIONS = [
    ("I laughed from the first minute to the last.", "positive"),
    ("The soup was cold and so was the waiter.", "negative"),
    ("A story that stays with you for weeks.", "positive"),
    ("The battery died on the second day.", "negative"),
    ("Best coffee in town, and the cake is even better.", "positive"),
    ("I want those two hours of my life back.", "negative"),
    ("The room was quiet, clean and full of light.", "positive"),
    ("Nothing in this book rings true.", "negative"),
    ("It does one thing and does it perfectly.", "positive"),
    ("They lost my luggage and then my complaint.", "negative"),
    ("The actors are a joy to watch together.", "positive"),
    ("Overpriced, overcooked and over at last.", "negative"),
    ("My children ask for it every single evening.", "positive"),
    ("The sequel repeats every mistake of the first part.", "negative"),
    ("Setting it up took one minute, and it has worked ever since.", "positive"),
    ("The walls are thin and the neighbours are not.", "negative"),
    ("A small place with a big heart and a wonderful cook.", "positive"),
    ("After ten pages I knew the end, and I was right.", "negative"),
    ("She writes so well that I forgot to get off the train.", "positive"),
    ("The screen scratches if you look at it.", "negative"),
    ("They answered within the hour and solved everything.", "positive"),
    ("A long, loud and empty film.", "negative"),
    ("The view alone is worth the journey.", "positive"),
    ("I have been on hold since Tuesday.", "negative"),
]
UNSEEN = [
    ("A lovely evening with excellent food.", "positive"),
    ("The service was slow and rude.", "negative"),
    ("I would recommend this book to everybody.", "positive"),
    ("It broke after a week.", "negative"),
    ("Warm, funny and beautifully played.", "positive"),
    ("A boring film with a silly ending.", "negative"),
    ("We will certainly come back.", "positive"),
    ("The worst hotel that I have ever stayed in.", "negative"),
]


def accuracy(pairs):
    """The share of the texts whose label the model finds."""
    found = model.predict([text for text, _ in pairs])
    return float(np.mean([answer.label == label for answer, (_, label) in zip(found, pairs, strict=True)]))


minift.manual_seed(0)
model = minift.load("minilm", labels=["negative", "positive"])  # afresh: float32, in training mode
before = model.predict([text for text, _ in UNSEEN])
accuracy_before = accuracy(OPINIONS), accuracy(UNSEEN)

# %% [markdown]
# In training mode *dropout* is on: a tenth of the numbers between the layers is set to 0 at random, so that no part
# can rely on another. Two helpers that are usual for transformers: gradients that are too long are shortened
# (`clip_grad_norm_`), and the learning rate rises from 0 in the first steps, then falls to 0 again
# (`linear_schedule`). The rate is larger than the usual 2e-5 to 5e-5, because 24 steps are few.

# %%
EPOCHS, BATCH = 8, 8
total_steps = EPOCHS * len(OPINIONS) // BATCH
optimizer = minift.AdamW(minift.decay_groups(model), lr=2e-4)
schedule = minift.linear_schedule(optimizer, total_steps, warmup_steps=3)
order = np.random.default_rng(0)

epoch_losses = []
for epoch in range(EPOCHS):
    losses = []
    for rows in order.permutation(len(OPINIONS)).reshape(-1, BATCH):
        texts, labels = zip(*[OPINIONS[row] for row in rows], strict=True)
        loss = minift.cross_entropy(model(list(texts)), labels)
        loss.backward()
        minift.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()  # else the next gradients would be added to these
        losses.append(loss.item())
    epoch_losses.append(np.mean(losses))
    print(f"epoch {epoch + 1}: mean loss {epoch_losses[-1]:.3f}")
assert epoch_losses[-1] < 0.25 * epoch_losses[0]

# %% [markdown]
# ## What it says now
#
# `predict` switches dropout off for its own call. These are the sentences that it did not learn from:

# %%
after = model.predict([text for text, _ in UNSEEN])
print("positive before -> after (the truth)")
for (text, label), old, new in zip(UNSEEN, before, after, strict=True):
    old_probability, new_probability = old.probabilities["positive"], new.probabilities["positive"]
    print(f"{old_probability:.3f} -> {new_probability:.3f}  ({label}) {text}")
accuracy_after = accuracy(OPINIONS), accuracy(UNSEEN)
for name, old, new in zip(("learned from", "unseen"), accuracy_before, accuracy_after, strict=True):
    print(f"accuracy on the sentences {name}: {old:.3f} -> {new:.3f}")
assert accuracy_after[0] > accuracy_before[0] and accuracy_after[1] > accuracy_before[1]

# %% [markdown]
# ## Training only the upper layers
#
# The lower layers hold what is true of language in general, and may stay as they are: *frozen*. What is frozen needs
# no gradient; and as nothing below it does, either, the walk backwards ends there. No operation below the boundary
# runs backward or keeps anything for it, and AdamW keeps no m and v.


# %%
def cost_of_a_step(texts, labels):
    """What the backward pass does: its operations, the weights that get a gradient, and seconds with the forward."""
    model.zero_grad()
    started = time.perf_counter()
    loss = minift.cross_entropy(model(texts), labels)
    operations = sum(1 for _ in loss.backward_steps())
    seconds = time.perf_counter() - started
    trained = sum(p.data.size for p in model.parameters() if p.grad is not None)
    return operations, trained, seconds


texts, labels = (list(column) for column in zip(*OPINIONS, strict=True))
cost_of_a_step(texts, labels)  # once to warm up
all_operations, all_trained, all_seconds = cost_of_a_step(texts, labels)
model.bert.freeze(layers=4)  # and the embeddings
operations, trained, seconds = cost_of_a_step(texts, labels)

print(f"operations backward  {all_operations:>11} -> {operations}")
print(f"weights to train     {all_trained:>11,} -> {trained:,}")
print(f"AdamW's m and v      {8 * all_trained / 1e6:>8.1f} MB -> {8 * trained / 1e6:.1f} MB")
print(f"forward + backward   {all_seconds:>9.3f} s -> {seconds:.3f} s (measured just now, once)")
dropouts = 1 + 2 * config.num_hidden_layers + 1  # after the embeddings, twice in each layer, before the head
assert all_operations == len(steps) + dropouts  # `steps` were counted in evaluation mode
assert all_trained == weights_in_all
assert trained == sum(p.data.size for p in model.parameters() if p.requires_grad) < 0.2 * all_trained
assert operations < 0.5 * all_operations

# %% [markdown]
# ## Saving
#
# The directory is an ordinary Hugging Face model. minift loads it again with the same answers; so does transformers:
#
# ```python
# from transformers import AutoModelForSequenceClassification, AutoTokenizer
#
# model = AutoModelForSequenceClassification.from_pretrained("runs/opinions")
# tokenizer = AutoTokenizer.from_pretrained("runs/opinions")
# ```

# %%
directory = Path("runs/opinions")
model.save(directory)
for file in sorted(directory.iterdir()):
    print(f"{file.stat().st_size:>12,} bytes  {file}")
again = minift.load(directory).predict([text for text, _ in UNSEEN])
assert [answer.probabilities for answer in again] == [answer.probabilities for answer in after]

# %% [markdown]
# ## What to read next
#
# All that ran is in `minift/`, in the reading order of CONTRIBUTING.md: the layers of this chapter are `bert.py`,
# the operations with their backwards `ops.py`, the walk `history.py`. Set a breakpoint in any backward: it will stop
# there.
#
# The training loop for real files is `minift finetune --model minilm --train train.tsv --dev dev.tsv --out
# my-model`.
