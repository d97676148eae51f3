"""One training step to stop in. Set a breakpoint in any backward of minift/ops.py, and debug this file.

python -m pdb tutorials/debugging/one_step.py                        in a terminal
"one training step" in .vscode/launch.json                           in VS Code
MINIFT_KERNELS=reference python -m pdb tutorials/debugging/one_step.py   to step into the kernels, too
"""

import sys

import minift

name = sys.argv[1] if len(sys.argv) > 1 else "minilm"
model = minift.load(name, labels=["negative", "positive"]).eval()
optimizer = minift.AdamW(minift.decay_groups(model), lr=2e-5)

# minift.set_breakpoint(op="attention", module="*.layer.3.*")  # opens the debugger there, and only there
loss = minift.cross_entropy(model("A film that earns every one of its tears."), "positive")
loss.backward()
optimizer.step()
print(f"loss {loss.item():.4f}")
