"""The other side of every race: eager PyTorch with transformers, set up as their documentation teaches.

What was chosen for its speed on a CPU, so that minift races the best eager PyTorch and not a straw man:
`AdamW(fused=True)` (one pass over all parameters), `foreach` clipping, gradients set to None, batches padded
no further than their own longest text, as many threads as cores, transformers' default attention
(`scaled_dot_product_attention`), and the compiled tokenizer.

`ours.py` offers the same methods for minift; `cpu.py` knows no more than these.
"""

import os
from pathlib import Path

import torch
import transformers
from data import minilm_directory
from torch.nn.utils import clip_grad_norm_

transformers.utils.logging.set_verbosity_error()  # the notice of a new head, once a run, is no news here
transformers.utils.logging.disable_progress_bar()
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(len(os.sched_getaffinity(0)))


class Trainer:
    """A classifier of two classes, its optimizer and its schedule.

    directory      a Hugging Face directory
    frozen_layers  None trains everything; K freezes the embeddings and the lower K encoder layers
    """

    def __init__(self, directory: str, frozen_layers: int | None = None):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, num_labels=2)
        self.model.train()
        if frozen_layers is not None:
            _freeze(self.model, frozen_layers)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=5e-5, weight_decay=0.01, fused=True)
        self.schedule = transformers.get_linear_schedule_with_warmup(
            self.optimizer, num_warmup_steps=100, num_training_steps=1000
        )

    def encode(self, texts: list[str]):
        """A batch padded to its own longest text."""
        return self.tokenizer(texts, padding="longest", truncation=True, max_length=128, return_tensors="pt")

    def tokens(self, batch) -> int:
        """The real tokens of a batch: padding is work, but nobody asked for it."""
        return int(batch["attention_mask"].sum())

    def step(self, batch, labels: list[int]) -> float:
        """One training step: forward, backward, clipping, update. Returns the loss."""
        loss = self.model(**batch, labels=torch.tensor(labels)).loss
        loss.backward()
        clip_grad_norm_(self.trainable, 1.0, foreach=True)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def predict(self, texts: list[str]) -> list[list[float]]:
        """The logits of each text (B, C), without dropout and without a history."""
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(**self.encode(texts)).logits
        self.model.train()
        return logits.tolist()


def _freeze(model, layers: int) -> None:
    frozen = [model.bert.embeddings, *model.bert.encoder.layer[:layers]]
    for module in frozen:
        module.requires_grad_(False)


def write_models(folder: str) -> None:
    """Write the directories that races start from: `minilm` and `bert-base`, with heads.

    Both sides load the same files, head included, so they must agree on the logits before they race.
    BERT-base has random weights (seed 0): its speed does not depend on them, and nobody has to download it.
    """
    torch.manual_seed(0)
    start = str(minilm_directory())
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    models = {
        "minilm": transformers.AutoModelForSequenceClassification.from_pretrained(start, **labels),
        "bert-base": transformers.BertForSequenceClassification(transformers.BertConfig(**labels)),
    }
    for name, model in models.items():
        model.save_pretrained(Path(folder) / name)
        tokenizer.save_pretrained(Path(folder) / name)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}
