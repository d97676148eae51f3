"""Pre-training: from a text file to a small language model that began with random weights.

A tokenizer is learned from the text, a model is drawn, and then `finetune` trains it: pre-training is fine-tuning from
nothing, on a task that needs no labels. What it writes is a checkpoint like any other, to fine-tune from.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minift import checkpoint, random
from minift.device import explaining_out_of_memory
from minift.errors import InputError
from minift.models import MODELS
from minift.models.architecture import ModelConfig, initialize
from minift.models.bert import BertConfig
from minift.models.gpt2 import GPT2Config
from minift.models.llama import LlamaConfig
from minift.tasks import TASKS
from minift.tasks.documents import Documents
from minift.tokenizer import BERT_SPECIAL_TOKENS, Tokenizer
from minift.train import (
    LOG,
    TrainingConfig,
    begin,
    check_directory,
    check_options,
    check_types,
    settle_types,
    train,
)

START = "start"
"""The directory, in the one that is written, of the model before its training."""

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class PretrainingConfig:
    """Everything that decides how a new model is made and trained."""

    train: Path
    """Plain text to learn from: .txt is one document, each row of .tsv, .csv or .jsonl is one."""
    out: Path
    """The directory to write."""
    dev: Path | None = None
    """Plain text to judge by, before and after; never learned from."""
    family: Literal["gpt2", "llama", "bert"] = "gpt2"
    """gpt2 and llama learn which token comes next, bert which one was masked."""
    tokens: Literal["characters", "subwords"] = "subwords"
    """What the text is split into: single characters, or pieces of words that are learned from it."""
    vocab_size: int = 8000
    """The number of subwords."""
    layers: int = 4
    heads: int = 4
    width: int = 128
    """H, the width of every token's vector."""
    context: int = 64
    """The longest text in tokens."""
    dropout: float = 0.0
    epochs: int = 1
    """How often every block of the text is seen."""
    batch_size: int = 12
    """Blocks per step."""
    learning_rate: float = 1e-3
    """The rate after warm-up; from there it falls to 0 along a cosine."""
    warmup: float = 0.05
    """The share of all steps in which the rate rises from 0."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; biases and norms are exempt."""
    seed: int = 0
    """Decides the weights, the order of the blocks, the masks and the dropout."""
    overwrite: bool = False
    """Replace a run that the directory already holds."""
    text_column: str | None = None
    """The column of the text; `sentence` or `text` if not given."""

    def __post_init__(self):
        settle_types(self)


@explaining_out_of_memory()
def pretrain(config: PretrainingConfig) -> dict:
    """Train a new model on plain text and write the directory `config.out`, as `finetune` does; returns its metrics.

    Raises InputError for options out of range and for a file without text.
    """
    check_types(config)
    for name in ("layers", "heads", "width", "context", "vocab_size"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}, expected 1 or more")
    if config.width % config.heads:
        raise InputError(f"width {config.width} is no multiple of heads {config.heads}")
    architecture = MODELS[config.family]
    task = "fill-mask" if "MaskedLM" in architecture.heads else "text-generation"
    training = TrainingConfig(
        train=config.train,
        dev=config.dev,
        out=config.out,
        model=str(config.out / START),
        task=task,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="cosine",
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        seed=config.seed,
        overwrite=config.overwrite,
        text_column=config.text_column,
    )
    check_options(training)
    check_directory(config.out, config.overwrite)
    if not (config.out / LOG).exists():  # else a run was begun there and did not end, and this model began it
        check_directory(config.out / START, config.overwrite)
    random.manual_seed(config.seed)
    tokenizer = learn_tokenizer(Documents(config.train, config.text_column).texts, config)
    model = TASKS[task](architecture, new_shape(config, tokenizer), None, tokenizer)
    initialize(dict(model.named_parameters()), model.config.initializer_range)
    if config.dev is not None:
        Documents(config.dev, config.text_column)  # what is wrong with it is said before anything is replaced
    checkpoint.make_directory(config.out)
    with checkpoint.writing_alone(config.out / LOG):
        check_directory(config.out, config.overwrite)  # again: another run may have ended meanwhile
        model.save(config.out / START)
        return train(training, begin(training))


def new_shape(config: PretrainingConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The shape of the new model, under the names of its family."""
    vocabulary = tokenizer.vocab_size
    end = tokenizer.special_id("eos_token")
    if config.family == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=end,
            eos_token_id=end,
        )
    if config.family == "llama":
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=config.width * 8 // 3,  # three matrices with a gate weigh as much as two of 4 H
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context,
            attention_dropout=config.dropout,
            tie_word_embeddings=True,
            eos_token_id=end,
        )
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.context,
    )


def learn_tokenizer(texts: list[str], config: PretrainingConfig) -> Tokenizer:
    """A tokenizer whose vocabulary comes from the texts: BERT's kind for bert, else one without loss of any byte."""
    special = list(BERT_SPECIAL_TOKENS.values()) if config.family == "bert" else [END_OF_TEXT]
    entries = dict(BERT_SPECIAL_TOKENS) if config.family == "bert" else {"eos_token": END_OF_TEXT}
    if config.tokens == "characters":
        unknown = "[UNK]" if config.family == "bert" else "<|unknown|>"
        names = dict.fromkeys([*special, unknown, *sorted(set("".join(texts)))])
        vocabulary = {name: index for index, name in enumerate(names)}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([*special, unknown])
        entries |= {"unk_token": unknown, "tokenizer_class": "PreTrainedTokenizerFast"}
    elif config.family == "bert":
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=config.vocab_size, special_tokens=special, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
    else:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        entries |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    if config.family == "bert":
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
    return Tokenizer(backend, entries, config.context, config.train)
