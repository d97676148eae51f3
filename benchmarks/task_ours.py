"""minift's side of `tasks.py`: what `minift finetune` and `minift predict` do, in a process of its own.

python task_ours.py request.json reply.json
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import minift
from minift.data import Columns

SAID = {
    "text-classification": lambda prediction: prediction.label,
    "text-regression": lambda prediction: prediction.score,
    "token-classification": lambda prediction: prediction.tags,
    "question-answering": lambda prediction: prediction.answer,
}
"""What of a prediction is scored."""


def run(order: dict) -> dict:
    """Fine-tune as ordered; the predictions for the held-out part, and the seconds that both took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = minift.TrainingConfig(
            train=Path(order["train"]),
            out=Path(folder),
            model=order["model"],
            task=order["task"],
            epochs=order["epochs"],
            batch_size=order["batch_size"],
            learning_rate=order["learning_rate"],
            max_length=order["max_length"],
            seed=order["seed"],
        )
        minift.finetune(config)
        model = minift.load(folder)
    examples = model.read(Path(order["dev"]), Columns(), labelled=False)
    predictions = model.predict([examples[index][0] for index in range(len(examples))])
    return {
        "predictions": [SAID[order["task"]](prediction) for prediction in predictions],
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"minift": minift.__version__, "numpy": version("numpy"), "numba": version("numba")},
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
