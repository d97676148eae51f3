"""The command line: `minift finetune`, `evaluate`, `predict` and what else `minift --help` lists."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from minift_kernels.ladder import RungError

from minift import checkpoint
from minift.data import Columns
from minift.device import explaining_out_of_memory
from minift.diagnosis.command import case_of_directory, case_of_script, examine
from minift.errors import InputError
from minift.evaluate import evaluate
from minift.find_lr import PAGE as RATE_PAGE
from minift.find_lr import RateSearch, find_lr, page
from minift.generation import Sampling
from minift.info import info
from minift.load import load
from minift.methods import part
from minift.models.word_vectors import import_word2vec
from minift.pretrain import PretrainingConfig, pretrain
from minift.report import FILE as REPORT
from minift.sweep import BEST, PAGE, Sweep, sweep
from minift.tasks import TASKS
from minift.tasks.text_generation import TextGeneration
from minift.text_trace import trace_text
from minift.trace_page import write_trace
from minift.train import LOG, METRICS, TrainingConfig, finetune

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "tf32", "bf16"]


@dataclass(frozen=True)
class Evaluate:
    """Say how well a fine-tuned model does on labelled examples."""

    directory: tyro.conf.Positional[str]
    """What `minift finetune` or transformers wrote."""
    data: Path
    """Labelled examples, such as the model was trained on."""
    batch_size: int = 32
    device: Device = "cpu"
    """Where to compute: cpu, or cuda for an NVIDIA GPU."""
    precision: Precision = "float32"
    """What to compute in: tf32 and bf16 are for a GPU's tensor cores."""
    json: bool = False
    """Print JSON."""
    max_length: int | None = None
    """The longest text in tokens; the model's own longest if not given."""
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class Predict:
    """Say what a fine-tuned model makes of texts."""

    directory: tyro.conf.Positional[str]
    """What `minift finetune` or transformers wrote."""
    text: tuple[str, ...] = ()
    """One or more texts."""
    question: str | None = None
    """A question that --context answers."""
    context: str | None = None
    """The text that --question asks about."""
    file: Path | None = None
    """A file of texts: .txt with one a line, .tsv, .csv or .jsonl with a header, or what the task is trained on."""
    batch_size: int = 32
    device: Device = "cpu"
    """Where to compute: cpu, or cuda for an NVIDIA GPU."""
    precision: Precision = "float32"
    """What to compute in: tf32 and bf16 are for a GPU's tensor cores."""
    json: bool = False
    """Print one JSON object a line, with all that the model says."""
    max_length: int | None = None
    """The longest text in tokens; the model's own longest if not given."""
    text_column: str | None = None
    pair_column: str | None = None


@dataclass(frozen=True)
class Trace:
    """Replay one backward pass in a page: where the gradient goes, step by step, from the loss to the embeddings."""

    directory: tyro.conf.Positional[str]
    """What `minift finetune` or transformers wrote."""
    text: str
    label: str
    """What the model should have said of the text: the loss is about this."""
    out: Path = Path("trace.html")
    """The page; for a name that ends in .svg, the picture alone."""
    freeze_layers: int = 0
    """Freeze the embeddings and this many of the lowest layers, as in a fine-tuning that does."""
    max_length: int | None = None
    """The longest text in tokens; the model's own longest if not given."""


@dataclass(frozen=True)
class Generate:
    """Let a causal language model go on with a text."""

    directory: tyro.conf.Positional[str]
    """What `minift pretrain`, `minift finetune` or transformers wrote."""
    prompt: str
    """The beginning of the text."""
    max_new_tokens: int = 100
    """The longest continuation in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token at every step; 1 draws as the model says."""
    top_k: int | None = None
    """Draw among this many of the likeliest tokens."""
    top_p: float | None = None
    """Draw among the fewest tokens that together have this probability."""
    seed: int = 0
    """Decides what is drawn."""


@dataclass(frozen=True)
class Step:
    """Step through the backward pass of one text in the terminal, forth and back (needs the extra `tui`)."""

    directory: tyro.conf.Positional[str]
    """What `minift finetune` or transformers wrote."""
    text: str
    label: str
    """What the model should have said of the text: the loss is about this."""


@dataclass(frozen=True)
class ImportVectors:
    """Make a model directory, to fine-tune from, of word vectors in word2vec's text format."""

    file: tyro.conf.Positional[Path]
    out: Path
    """The directory to write."""
    overwrite: bool = False
    """Replace a model that the directory already holds."""
    pooling: Literal["mean", "convolution"] = "mean"
    """What makes a text of its words' vectors."""


@dataclass(frozen=True)
class Merge:
    """Make a plain model, which transformers loads, of a base model and what a method trained on it."""

    directory: tyro.conf.Positional[str]
    """What `minift finetune --method ...` wrote, or PEFT."""
    out: Path
    """The directory to write."""
    overwrite: bool = False
    """Replace a model that the directory already holds."""


@dataclass(frozen=True)
class Doctor:
    """Say what keeps a model from learning: run invariants, and name what breaks them (exit status 1), and how to mend
    it."""

    subject: tyro.conf.Positional[Path]
    """A saved model or a run's directory; or a training script, which is run up to its first optimizer.step()."""
    train: Path | None = None
    """The labelled examples that the model of a directory learns from; those of its run if not given."""
    batch_size: int | None = None
    """Texts in the batch that is examined: the run's own, else 32."""
    learning_rate: float | None = None
    """The rate that is judged: the run's own, else 5e-5."""
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Info:
    """Say what this machine runs minift with."""

    json: bool = False
    """Print JSON."""


Command = (
    Annotated[
        TrainingConfig,
        tyro.conf.subcommand("finetune", description="Fine-tune a checkpoint on labelled texts."),
    ]
    | Annotated[
        Sweep,
        tyro.conf.subcommand("sweep", description="Fine-tune with many settings, and say which is best."),
    ]
    | Annotated[
        RateSearch,
        tyro.conf.subcommand("find-lr", description="Look for a learning rate, in two ways that must agree."),
    ]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Trace, tyro.conf.subcommand("trace")]
    | Annotated[
        PretrainingConfig,
        tyro.conf.subcommand("pretrain", description="Train a new language model on plain text."),
    ]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Step, tyro.conf.subcommand("step")]
    | Annotated[ImportVectors, tyro.conf.subcommand("import-vectors")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 when the doctor found something, or 2 when something is wrong with what
    the user gave.

    What is wrong is then one line on stderr; what the operating system refused counts as such.
    """
    command = tyro.cli(
        Command,
        prog="minift",
        description="Fine-tune pre-trained transformers, and see how it works.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        with (
            explaining_out_of_memory(),
            np.errstate(all="ignore"),
        ):  # `finetune` finds what is no number
            status = RUN[type(command)](command) or 0
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # whoever reads what is printed, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is still to be flushed
        return 141
    except (InputError, RungError, OSError) as error:
        print(f"minift: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minift: stopped", file=sys.stderr)
        return 130


def run_finetune(config: TrainingConfig) -> None:
    """Fine-tune, and print what the model scored before and after."""
    metrics = finetune(config)
    for name in ("before", "after"):
        if metrics[name]:
            print(f"{name:6}  {in_words(metrics[name])}")
    if metrics["truncated"]:
        print(
            f"{metrics['truncated']} texts were longer than the maximum and were truncated (each epoch counts)"
        )
    print(f"wrote {config.out} (the model, {METRICS}, {LOG} and {REPORT})")
    print(f"next: minift predict {config.out} {TASKS[config.task].asked_with}")


def run_sweep(config: Sweep) -> None:
    """Search settings, and print the best ones."""
    best = sweep(config)
    print(best["page"])
    print("best:", "  ".join(f"{name} {value}" for name, value in best["values"].items()))
    print(in_words(best["metrics"]))
    print(f"wrote {config.out} ({PAGE}, and the best run under {BEST}/)")


def run_find_lr(config: RateSearch) -> None:
    """Look for a learning rate, and write the page that shows how."""
    print(page(find_lr(config)))
    print(f"wrote {config.out / RATE_PAGE}")


def run_merge(options: Merge) -> None:
    """Write a plain model, with what its method trained added to the weights."""
    if not options.overwrite:
        checkpoint.check_no_model(options.out)
    model = load(options.directory)
    if model.method is None:
        raise InputError(f"{options.directory}: this is a plain model: there is nothing to merge")
    part.check_place(model, options.out)
    model.method.unload(model)
    model.save(options.out)
    print(f"wrote {options.out}")


def run_evaluate(options: Evaluate) -> None:
    """Print the metrics of a model on a file."""
    model = load(
        options.directory,
        max_length=options.max_length,
        device=options.device,
        precision=options.precision,
    )
    columns = Columns(options.text_column, options.pair_column, options.label_column)
    metrics = evaluate(model, model.read(options.data, columns), options.batch_size)
    if options.json:
        print(json.dumps(metrics))
        return
    print(f"{in_words(metrics)}  examples {metrics['examples']}")


def in_words(metrics: dict[str, float]) -> str:
    """`accuracy 0.9020  loss 0.2710`"""
    shown = {name: value for name, value in metrics.items() if name not in ("examples", "seconds")}
    return "  ".join(f"{name} {value:.4f}" for name, value in shown.items())


def run_predict(options: Predict) -> None:
    """Print what a model says of one text, of each line of a file, or of a question."""
    if (options.question is None) != (options.context is None):
        raise InputError("--question and --context belong together")
    given = (options.text or None, options.file, options.question)
    if sum(each is not None for each in given) != 1:
        raise InputError("predict takes one of --text, --file, and --question with --context")
    model = load(
        options.directory,
        max_length=options.max_length,
        device=options.device,
        precision=options.precision,
    )
    inputs: list[Any] = list(options.text)
    if options.question is not None:
        inputs = [(options.question, options.context)]
    elif options.file:
        columns = Columns(options.text_column, options.pair_column)
        examples = model.read(options.file, columns, labelled=False)
        inputs = [examples[index][0] for index in range(len(examples))]
    for text, prediction in zip(inputs, model.predict(inputs, options.batch_size), strict=True):
        if options.json:
            said = {"text": text, **prediction._asdict()}
            print(json.dumps(said, default=asdict, ensure_ascii=False))  # asdict: a tagger's entities
        else:
            print(model.in_words(text, prediction))


def run_trace(options: Trace) -> None:
    """Write the page, or the picture, of one backward pass."""
    model = load(options.directory, max_length=options.max_length)
    model.body.freeze(options.freeze_layers)
    write_trace(model, options.text, options.label, options.out, Path(options.directory).name)
    print(f"wrote {options.out}")


def run_pretrain(config: PretrainingConfig) -> None:
    """Train a language model from nothing, and print its metrics before and after."""
    metrics = pretrain(config)
    for name in ("before", "after"):
        if metrics[name]:
            print(f"{name:6}  {in_words(metrics[name])}")
    print(f"wrote {config.out} (the model, {METRICS}, {LOG} and {REPORT})")


def run_generate(options: Generate) -> None:
    """Print how a text goes on."""
    model = load(options.directory, "text-generation")
    assert isinstance(model, TextGeneration)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    [text] = model.generate([options.prompt], options.max_new_tokens, sampling)
    print(options.prompt + text)


def run_step(options: Step) -> None:
    """Open the stepper in the terminal."""
    try:
        from minift.stepper import Stepper
    except ModuleNotFoundError as error:
        raise InputError(f"step needs {error.name}: pip install 'minift[tui]'") from None
    model = load(options.directory)
    trace, batch = trace_text(model, options.text, options.label)
    if not sys.stdout.isatty():
        raise InputError("step draws on a terminal, and its output goes elsewhere")
    tokens = " ".join(model.tokenizer.tokens(batch.ids.tolist()))
    Stepper(trace, f"loss {trace.loss:.4f}, label {options.label}: {tokens}").run()


def run_import_vectors(options: ImportVectors) -> None:
    """Write a model directory from a file of word vectors."""
    if not options.overwrite:
        checkpoint.check_no_model(options.out)
    import_word2vec(options.file, options.out, options.pooling)
    print(f"wrote {options.out}")


def run_doctor(options: Doctor) -> int:
    """Print what is wrong with a fine-tuning; 1 where something is, 0 where nothing is."""
    if options.subject.suffix == ".py":
        case = case_of_script(options.subject)
    else:
        columns = Columns(options.text_column, options.pair_column, options.label_column)
        case = case_of_directory(
            options.subject, options.train, options.batch_size, options.learning_rate, columns
        )
    found = examine(case)
    if options.json:
        print(json.dumps([finding._asdict() for finding in found]))
    elif found:
        print("\n\n".join(map(str, found)))
    else:
        print("nothing found: all invariants hold")
    return 1 if found else 0


def run_info(options: Info) -> None:
    """Print what minift runs on."""
    facts = info()
    if options.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name}:" if isinstance(value, dict) else f"{name}: {value}")
        if isinstance(value, dict):
            for key, inner in value.items():
                print(f"  {key:14} {inner}")


RUN: dict[type, Callable[[Any], int | None]] = {
    TrainingConfig: run_finetune,
    Sweep: run_sweep,
    RateSearch: run_find_lr,
    Evaluate: run_evaluate,
    Predict: run_predict,
    Trace: run_trace,
    PretrainingConfig: run_pretrain,
    Generate: run_generate,
    Step: run_step,
    ImportVectors: run_import_vectors,
    Merge: run_merge,
    Doctor: run_doctor,
    Info: run_info,
}
