# %% [markdown]
# # 2. See a gradient
#
# Chapter 1 called `loss.backward()` and believed it. This chapter looks: at each operation of the backward pass, at
# where every number of a gradient came from, and at the very line that computes it, in a debugger. It is for the day
# when a model does not learn and one has to know why.
#
# Run it from top to bottom (`python tutorials/02_see_a_gradient.py`) or cell by cell. Whatever is claimed is printed or
# asserted. The pictures were taken by `tutorials/figures/take_02.py` of programs that ran; none is drawn.

# %%
import sys
from collections import deque

import numpy as np

import minift
import minift.nn
from minift import Tensor, ops
from minift.gradient_check import check_gradients

minift.manual_seed(0)
model = minift.load("minilm", labels=["negative", "positive"]).eval()
TEXT, LABEL = "A film that earns every one of its tears.", "positive"


def loss_of(text=TEXT, label=LABEL):
    """The loss of one text."""
    return minift.cross_entropy(model(text), label)


def gradients():
    """Every parameter's gradient, which is then forgotten."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


# %% [markdown]
# ## One step
#
# The forward pass leaves a history of operations. The backward pass walks it from the loss down, and
# `backward_steps()` hands out each operation when its turn is over. To save memory a history keeps only what the
# gradients need. Inside `minift.recording()` it keeps the inputs and outputs, too, so that a step can show them.

# %%
with minift.recording():
    loss = loss_of()
for step in loss.backward_steps():
    if step.operation == "linear" and step.module == "bert.encoder.layer.3.intermediate.dense":
        break

print(step.operation, "in", step.module)
print("  computes", step.formula)
print("  called at", step.line)
print(f"  dy came in: {step.gradient.shape}, norm {np.linalg.norm(step.gradient):.2e}")
for name, value, sent in zip(step.names, step.inputs, step.contributions, strict=True):
    print(f"  {name:7} {value.shape!s:12} was sent a gradient of norm {np.linalg.norm(sent):.2e}")
print(f"  what is still to do holds {step.bytes_held / 1e6:.1f} MB")

x, weight, bias = step.inputs
dx, dweight, dbias = step.contributions
np.testing.assert_allclose(step.output, x @ weight.T + bias, rtol=1e-4, atol=1e-4)
np.testing.assert_allclose(dx, step.gradient @ weight, rtol=1e-3, atol=1e-7)
np.testing.assert_allclose(dweight, step.gradient.T @ x, rtol=1e-3, atol=1e-7)

# %% [markdown]
# We left the loop in the middle, and so the backward pass: what lies above layer 3 has its gradients, what lies below
# has none. That is no error. A pass that stops half-way can go on whenever it likes, and in the end the gradients are
# those of `backward()`, bit by bit. (First we forget those of the half pass above, or they would be added to.)

# %%
model.zero_grad()
steps = loss_of().backward_steps()
for step in steps:
    if step.module.startswith("bert.encoder.layer.3"):
        break
layers = model.bert.encoder.layer
print(
    "layer 4:",
    layers[4].output.dense.bias.grad is not None,
    "  layer 2:",
    layers[2].output.dense.bias.grad is not None,
)
deque(steps, maxlen=0)  # to the end
stepped = gradients()

loss_of().backward()
for name, gradient in gradients().items():
    np.testing.assert_array_equal(stepped[name], gradient, err_msg=name)
print("stepped and not stepped: the same bits")

# %% [markdown]
# ## A whole pass, forth and back
#
# `minift.trace` runs the pass and keeps every step, so that one can go through it in any order. With arrays it keeps
# everything; a recording of `"summaries"` keeps of each array its norm, mean, largest value, the share of zeros, the
# number of NaN and infinities and a histogram, so that large models fit.
#
# How large is the gradient when it leaves each layer? This is the picture of fine-tuning that every textbook draws,
# measured.

# %%
with minift.recording("summaries"):
    loss = loss_of()
trace = minift.trace(loss, model)
model.zero_grad()
print(f"{len(trace)} steps; the gradient of what each layer returned:")
for number, step in enumerate(trace):
    parts = step.module.split(".")
    if step.operation == "layer_norm" and parts[-2:] == ["output", "LayerNorm"] and "attention" not in parts:
        users = len(trace.comes_from(number))
        bar = "#" * int(150 * step.gradient.norm)
        print(f"  layer {parts[3]}: norm {step.gradient.norm:.4f} {bar} (used {users} times)")

# %% [markdown]
# ## The ledger: where did this gradient come from?
#
# A parameter's `.grad` is a sum. If its weight is used twice, or the pass is run for several small batches before the
# optimizer steps, each adds its share, and nobody can tell afterwards whose is whose. A ledger enters each share by
# itself. Two texts, one after the other:

# %%
ledger = minift.Ledger(model)
for text, label in ((TEXT, "positive"), ("I want those two hours of my life back.", "negative")):
    ledger.add((loss_of(text, label) / 2).backward_steps())
print(ledger.table("classifier.weight"))
print(ledger.table("bert.encoder.layer.0.attention.self.value.weight"))
worst = max(ledger.difference(name) for name, _ in model.named_parameters())
print(
    f"over all {len(ledger.entries)} parameters, the entries add up to .grad within {worst:.0e} of the largest value"
)
assert worst == 0
model.zero_grad()

# %% [markdown]
# Tied weights are the case where this matters most. Here a matrix is used at both ends of a small model, to look words
# up and to score them, as in most language models. Its gradient has two parts, of different size and different shape:
# looking up touches the rows of the words that were read, scoring touches all.

# %%


class Tied(minift.nn.Module):
    """Looks a word up, bends it, and scores every word with the same matrix."""

    def __init__(self):
        self.words = minift.nn.Embedding(8, 4)

    def forward(self, ids):
        return self.words(ids).tanh() @ self.words.weight.T


tied = Tied()
ledger = minift.Ledger(tied)
ledger.add(minift.cross_entropy(tied(np.array([1, 5])), [5, 2]).backward_steps())
print(ledger.table("words.weight"))
for entry in ledger["words.weight"]:
    rows = np.flatnonzero(np.abs(entry.gradient).sum(axis=1)).tolist()
    print(f"  {entry.operation}: rows {rows}")
assert ledger.difference("words.weight") < 1e-6

# %% [markdown]
# ## Is this gradient right?
#
# `check_gradients` takes one step of a trace and asks nature: it runs the operation again with an input moved a little
# forth and back along a random direction, in float64, and compares how the output changed with what the backward said.

# %%
with minift.recording():
    loss = loss_of()
trace = minift.trace(loss, model)
model.zero_grad()
attention = next(step for step in trace if step.operation == "attention" and ".layer.3." in step.module)
for check in check_gradients(attention):
    print(f"d{check.name}: the backward says {check.said:+.6e}, measured {check.measured:+.6e}")
    assert check.right

# %% [markdown]
# It finds what is wrong. Here is an operation whose backward has lost its factor 3.

# %%


def cube(x):
    """y = x^3"""
    values = x.data

    def backward(dy):
        return (dy * values**2,)

    return Tensor(values**3, parents=(x,), backward=backward)


with minift.recording():
    wrong = cube(Tensor([1.0, 2.0], requires_grad=True)).sum()
(check,) = check_gradients(minift.trace(wrong)[1])
print(
    f"cube: the backward says {check.said:+.4f}, measured {check.measured:+.4f}: {'right' if check.right else 'WRONG'}"
)
assert not check.right
np.testing.assert_allclose(check.measured / check.said, 3, rtol=1e-5)

# %% [markdown]
# ## In a debugger
#
# Every backward is a Python function that runs on the thread which called `loss.backward()`. So the debugger that you
# already use stops in it. Set a breakpoint on a line of a backward in `minift/ops.py`, and debug
# `tutorials/debugging/one_step.py`:
#
# ![pdb, stopped inside the attention backward of layer 3](figures/02_pdb.svg)
#
# *A real session of pdb, in a terminal. It ignores the first two hits, which are layers 5 and 4. `dy`, `q_data` and the
# others are plain arrays; one frame further up, `self` is the node that says in which module this is.*
#
# In VS Code start "one training step" (`.vscode/launch.json`; F5), with a breakpoint on the same line. VS Code talks to
# debugpy in a protocol; what follows is what it says and hears, from a session that a script drove in its place:
#
# ![what VS Code and debugpy say to each other](figures/02_debugpy.svg)
#
# Three more configurations come with it. One is the same step with all kernels in NumPy (`MINIFT_KERNELS=reference`),
# so that one can step into them, too. One runs a GPU kernel of Numba's in a simulator, where each CUDA thread is a
# Python thread that a breakpoint stops; one runs a kernel of CUDA C on the CPU, where gdb stops in the thread that you
# name (`threadIdx.x == 3`).

# %% [markdown]
# A line of `ops.py` serves every layer. To stop in one module, say which. `set_breakpoint` takes patterns of the
# operation and the module, and a condition on the step. It stops when the contributions are computed and have gone
# nowhere yet; the next line runs the backward once more, so that a step into it (`s`, or F11) shows the very code with
# the very numbers. (From Python 3.13 on pdb stops one line earlier: there it takes two `s`.)
#
# It opens the debugger by `breakpoint()`, which calls `sys.breakpointhook`. So that this chapter runs without anybody
# at the keyboard, we put a function there that only looks.

# %%


def look():
    """What a debugger would show of the place where `breakpoint()` was called."""
    variables = sys._getframe(1).f_locals
    norms = {name: f"{np.linalg.norm(array):.2e}" for name, array in variables["contributions"].items()}
    print(f"  stopped in {variables['node'].module}; dy {variables['dy'].shape}, contributions {norms}")


debugger, sys.breakpointhook = sys.breakpointhook, look
minift.set_breakpoint(op="attention", module="*.layer.[03].*")
loss_of().backward()
minift.clear_breakpoints()
model.zero_grad()

# %% [markdown]
# And the commonest reason to look at all: a gradient that is no number. `breakpoint_on="nan"` stops at the operation
# that made it, before it has spread. The square root is infinitely steep at 0, and 0 times infinity is no number:

# %%
x = Tensor([0.0, 4.0], requires_grad=True)
root = x**0.5
with np.errstate(divide="ignore", invalid="ignore"):
    (ops.relu(root) * 2.0).sum().backward(breakpoint_on="nan")
sys.breakpointhook = debugger
assert np.isnan(x.grad[0])

# %% [markdown]
# ## In the terminal
#
# `minift step DIR --text "..." --label L` (`pip install 'minift[tui]'`) shows all of this at once. On the left is the
# backward pass, folded by module, with the norm of each gradient. On the right are the step's arrays and the source of
# its backward. `n` and `b` go on and back, `i` and `o` go into a module or a backward and out again, `p` sets a
# breakpoint and `r` runs to it, and `c` checks the step's gradients by finite differences.
#
# ![the stepper at the attention of layer 3, its gradients checked](figures/02_stepper.svg)
#
# ![the stepper inside a backward, at one of its lines](figures/02_stepper_inside.svg)
#
# *Two screens of the program, saved by itself. They are of the model above: in the first, `c` has just been pressed.*
