"""minift: fine-tune pre-trained transformers on an autograd engine that a reader can hold in the head.

    model = minift.load("minilm", task="text-classification", labels=["negative", "positive"])

CONTRIBUTING.md lists the files in reading order.
"""

from minift_kernels import use_kernels

from minift.breakpoints import clear_breakpoints, set_breakpoint
from minift.data import Batch, Dataset, batches
from minift.diagnosis.doctor import doctor
from minift.diagnosis.finding import Finding
from minift.errors import InputError
from minift.evaluate import evaluate
from minift.find_lr import FoundRate, RateSearch, find_lr
from minift.history import detect_anomaly, no_grad
from minift.ledger import Ledger
from minift.load import load
from minift.losses import cross_entropy, mse_loss
from minift.methods import apply_method
from minift.models.bert import Bert, BertConfig
from minift.optim import (
    AdamW,
    clip_grad_norm_,
    constant_schedule,
    cosine_schedule,
    decay_groups,
    linear_schedule,
)
from minift.random import manual_seed
from minift.recording import Summary, recording
from minift.tasks.text_classification import Prediction, TextClassification
from minift.tensor import Tensor
from minift.trace import trace
from minift.train import TrainingConfig, finetune

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "Batch",
    "Bert",
    "BertConfig",
    "Dataset",
    "Finding",
    "FoundRate",
    "InputError",
    "Ledger",
    "Prediction",
    "RateSearch",
    "Summary",
    "Tensor",
    "TextClassification",
    "TrainingConfig",
    "apply_method",
    "batches",
    "clear_breakpoints",
    "clip_grad_norm_",
    "constant_schedule",
    "cosine_schedule",
    "cross_entropy",
    "decay_groups",
    "detect_anomaly",
    "doctor",
    "evaluate",
    "find_lr",
    "finetune",
    "linear_schedule",
    "load",
    "manual_seed",
    "mse_loss",
    "no_grad",
    "recording",
    "set_breakpoint",
    "trace",
    "use_kernels",
]
