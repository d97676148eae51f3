"""Does a whole fine-tuning give PyTorch's numbers? STS-B in both libraries, from one head, without dropout.

    python benchmarks/same_losses.py

In `tasks.py` each library draws its own first head and its own dropout, so what they come to differs by chance. Here
both begin from the same file, nothing is dropped, and the texts come in the same order: what is left is rounding.
Prints the largest difference between the two losses of a step, in six parts of the training, and what both
score on dev.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import task_peer
from data import SHARED_DATA, minilm_directory
from task_data import RECIPES, scores, write_split
from transformers import AutoTokenizer

import minift
from minift.data import Columns

RECIPE = RECIPES["stsb"]
SEED = 0
PARTS = 6


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        split = write_split("stsb", options.data, Path(folder), options.examples)
        directory = write_beginning(options.model or minilm_directory(), Path(folder) / "model")
        losses, found = {}, {}
        for library, fine_tune in (("minift", ours), ("transformers", theirs)):
            losses[library], predictions = fine_tune(directory, split)
            found[library] = scores(RECIPE, predictions, split)
    first, last = losses["minift"][0], losses["minift"][-1]
    apart = np.abs(np.subtract(losses["minift"], losses["transformers"]))
    print(f"\n{len(apart)} steps, losses from {first:.3f} to {last:.3f}; largest differences:")
    for part in np.array_split(np.arange(len(apart)), min(PARTS, len(apart))):
        print(f"  steps {part[0] + 1:>3} to {part[-1] + 1:>3}  {apart[part].max():.1e}")
    for library, scored in found.items():
        print(f"{library:<13} " + "  ".join(f"{name} {value:.4f}" for name, value in scored.items()))


def write_beginning(model: Path, directory: Path) -> Path:
    """The pre-trained model with a head, and a config that drops nothing."""
    minift.manual_seed(SEED)
    minift.load(model, task=RECIPE.task, new_head=True).save(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def ours(directory: Path, split) -> tuple[list[float], list[float]]:
    """The loss of each step, and the predictions for dev."""
    model = minift.load(directory, task=RECIPE.task, max_length=RECIPE.max_length)
    train = model.read(split.train, Columns())
    model.prepare(train)
    optimizer = minift.AdamW(model.parameters(), lr=RECIPE.learning_rate, weight_decay=0.01)
    steps = RECIPE.epochs * math.ceil(len(train) / RECIPE.batch_size)
    schedule = minift.linear_schedule(optimizer, steps, math.ceil(0.1 * steps))
    losses = []
    for epoch in range(RECIPE.epochs):
        for batch in model.batches(train, RECIPE.batch_size, seed=SEED, epoch=epoch):
            loss = model.loss(model(batch), batch)
            loss.backward()
            optimizer.step(max_grad_norm=1.0)
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                print(f"minift step {len(losses)} loss {losses[-1]:.3f}", flush=True)
    dev = model.read(split.dev, Columns(), labelled=False)
    predictions = model.predict([dev[index][0] for index in range(len(dev))])
    return losses, [prediction.score for prediction in predictions]


def theirs(directory: Path, split) -> tuple[list[float], list[float]]:
    """The same of transformers, by the loop of `task_peer.py`."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    task = task_peer.Regression(tokenizer, RECIPE.max_length)
    train, dev = task.read(split.train, training=True), task.read(split.dev, training=False)
    model = task.model(str(directory))
    order = {
        "seed": SEED,
        **{name: getattr(RECIPE, name) for name in ("epochs", "batch_size", "learning_rate")},
    }
    losses = task_peer.learn(model, tokenizer, train, order)
    return losses, task.decode(task_peer.predict(model, tokenizer, dev), dev)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, help="no more than this many of either part: a trial run")
    parser.add_argument("--model", type=Path, help="a BERT's directory; minilm if not given")
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="the folder that holds stsb/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
