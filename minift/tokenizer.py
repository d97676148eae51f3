"""From text to token ids and back.

The pieces of words come from the `tokenizers` library, which reads what every Hugging Face model brings
along. What stands around them is done here: which special tokens a text gets, and where a text that is too
long is cut.

    "good film"            [CLS] good film [SEP]                 token types 0 0 0 0
    ("good", "very good")  [CLS] good [SEP] very good [SEP]      token types 0 0 0 1 1 1
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minift.checkpoint import open_file, read_json, write_json, write_text
from minift.errors import InputError

Text = str | tuple[str, str]
"""A text, or a pair of texts that the model reads together."""

Span = tuple[int, int]
"""A stretch of a text, in characters: the first one, and the one after the last."""

BERT_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

# Entries of a tokenizer_config.json that tell of the machine or the call that wrote it.
PASSING_ENTRIES = {
    "name_or_path", "tokenizer_file", "special_tokens_map_file", "is_local", "local_files_only",
    "max_length", "stride", "truncation_strategy", "truncation_side", "pad_to_multiple_of",
}  # fmt: skip

DEFAULT_MAX_LENGTH = 512
UNLIMITED = 1e6  # transformers writes 1e30 where it knows no maximum

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON can write it, UTF-8 cannot. Python also puts one for a byte that is not UTF-8."""


class Encoding(NamedTuple):
    """One text, or pair of texts, as the model reads it: with special tokens, cut to the maximum length."""

    ids: list[int]
    token_types: list[int]
    truncated: bool
    spans: list[Span | None] | None = None
    """Where in the text each token stands; None for one that is special or of another text. Only where asked for."""


class Template(NamedTuple):
    """What stands around the texts: `around[i]` goes before text i, the last one behind them all.

    Each is a list of (id, token type) of special tokens; `types[i]` is the token type of text i.
    """

    around: list[list[tuple[int, int]]]
    types: list[int]

    @property
    def specials(self) -> int:
        return sum(map(len, self.around))


class Tokenizer:
    """Splits texts into the tokens of one model."""

    def __init__(
        self, backend: tokenizers.Tokenizer, config: dict[str, Any], max_length: int, source: Path | str
    ):
        """`config` holds the entries of tokenizer_config.json; `source` names the tokenizer in errors.

        Raises InputError where `max_length` leaves no room for a text.
        """
        # Files may have both baked in. Here nothing is padded, and `encode` does the cutting.
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.config = config
        self.max_length = max_length
        self.source = source
        self._templates = {1: self._probe("a"), 2: self._probe("a", "a")}
        if max_length <= self._templates[2].specials:
            raise InputError(
                f"max_length {max_length} leaves no room for texts: a pair alone takes "
                f"{self._templates[2].specials} special tokens"
            )

    @classmethod
    def from_directory(cls, path: str | Path, max_length: int | None = None) -> "Tokenizer":
        """The tokenizer of a model directory: its tokenizer.json, else a BERT tokenizer from its vocab.txt.

        Texts are cut to `max_length` tokens; without it, to what tokenizer_config.json says, else to 512.
        Raises InputError for a directory without a tokenizer and for files that cannot be read.
        """
        directory = Path(path)
        config = _read_config(directory)
        if (directory / "tokenizer.json").exists():
            source = directory / "tokenizer.json"
            backend = _read_tokenizer_json(source)
        elif (directory / "vocab.txt").exists():
            source = directory / "vocab.txt"
            backend = _bert_tokenizer(source, config)
        else:
            raise InputError(f"{directory}: no tokenizer here: neither tokenizer.json nor vocab.txt")
        if max_length is None:
            stated = config.get("model_max_length")
            max_length = stated if isinstance(stated, int) and stated < UNLIMITED else DEFAULT_MAX_LENGTH
        return cls(backend, config, max_length, source)

    # ---- Text to ids ----

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Each text, or pair of texts, with its special tokens, cut to at most `max_length` tokens."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts, found one text")
        parts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        flat = [part for text in parts for part in text]
        _check(flat)
        pieces = iter(self.backend.encode_batch_fast(flat, add_special_tokens=False))
        return [self._assemble([next(pieces).ids for _ in text]) for text in parts]

    def encode_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, and each encoding says where in its text every token stands."""
        _check(texts)
        pieces = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._assemble([each.ids], [each.offsets]) for each in pieces]

    def encode_windows(self, pairs: Sequence[tuple[str, str]], overlap: int) -> list[list[Encoding]]:
        """Each pair as one or more encodings: the first text, and as much of the second as fits, to the second's end.

        Two windows that follow each other share `overlap` tokens of the second text, or half a window where that is
        less. A first text longer than half the room is cut to it. `spans` are those of the second text.
        """
        texts = [text for pair in pairs for text in pair]
        _check(texts)
        pieces = iter(self.backend.encode_batch(texts, add_special_tokens=False))
        room = self.max_length - self._templates[2].specials
        made = []
        for first, second in zip(pieces, pieces, strict=True):
            asked = first.ids[: max(1, room // 2)]
            width = room - len(asked)
            step = max(1, width - min(overlap, width // 2))
            starts = [0, *range(step, len(second.ids) - width + step, step)]
            windows = [
                self._assemble(
                    [asked, second.ids[start : start + width]],
                    [[None] * len(asked), second.offsets[start : start + width]],
                )
                for start in starts
            ]
            made.append([window._replace(truncated=len(asked) < len(first.ids)) for window in windows])
        return made

    def _assemble(
        self, texts: list[list[int]], spans: Sequence[Sequence[Span | None]] | None = None
    ) -> Encoding:
        template = self._templates[len(texts)]
        lengths = [len(ids) for ids in texts]
        kept = longest_first(lengths, room=self.max_length - template.specials)
        tokens = list(template.around[0])
        for ids, length, token_type, after in zip(
            texts, kept, template.types, template.around[1:], strict=True
        ):
            tokens += [(token, token_type) for token in ids[:length]]
            tokens += after
        placed: list[Span | None] = [None] * len(template.around[0])
        for each, length, after in zip(spans or (), kept, template.around[1:], strict=spans is not None):
            placed += [*each[:length], *[None] * len(after)]
        return Encoding(
            [token for token, _ in tokens],
            [kind for _, kind in tokens],
            truncated=kept != lengths,
            spans=None if spans is None else placed,
        )

    def _probe(self, text: str, pair: str | None = None) -> Template:
        """The special tokens that the library puts around one text or two, learned from an example."""
        example = self.backend.encode(text, pair)
        around: list[list[tuple[int, int]]] = [[]]
        types: list[int] = []
        for token, token_type, sequence in zip(
            example.ids, example.type_ids, example.sequence_ids, strict=True
        ):
            if sequence is None:
                around[-1].append((token, token_type))
            elif sequence == len(types):  # the first token of the next text
                around.append([])
                types.append(token_type)
        if len(types) != (1 if pair is None else 2):
            raise InputError(f"{self.source}: this tokenizer finds no token in the text 'a'")
        return Template(around, types)

    def pieces(self, text: str) -> list[int]:
        """The whole text without special tokens."""
        _check([text])
        return self.backend.encode(text, add_special_tokens=False).ids

    @property
    def before_text(self) -> list[int]:
        """The special tokens in front of a text, such as [CLS]."""
        return [token for token, _ in self._templates[1].around[0]]

    @property
    def after_text(self) -> list[int]:
        """The special tokens behind a text, such as [SEP]."""
        return [token for token, _ in self._templates[1].around[1]]

    # ---- Ids to text, and the vocabulary ----

    def decode(self, ids: Sequence[int]) -> str:
        """The text behind the ids, without special tokens."""
        return self.backend.decode([int(token) for token in ids], skip_special_tokens=True)

    def special_id(self, name: str) -> int | None:
        """The id of a special token by its name in tokenizer_config.json, such as mask_token; None if there is none."""
        token = self.config.get(name, BERT_SPECIAL_TOKENS.get(name))
        return None if token is None else self.backend.token_to_id(_content(token))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens behind the ids: [101, 2204, 102] is ["[CLS]", "good", "[SEP]"]."""
        return [self.backend.id_to_token(int(token)) or "" for token in ids]

    @property
    def vocab_size(self) -> int:
        """The number of rows that an embedding needs: one more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def pad_token_id(self) -> int | None:
        """For config.json alone: other libraries pad."""
        return self.backend.token_to_id(_content(self.config.get("pad_token", "[PAD]")))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InputError where the tokenizer makes ids that a model of `vocab_size` embeddings has not."""
        if self.vocab_size > vocab_size:
            raise InputError(
                f"{self.source}: the tokenizer makes ids up to {self.vocab_size - 1}, the model knows those "
                f"up to {vocab_size - 1} (vocab_size {vocab_size}): they do not belong together"
            )

    # ---- Files ----

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads alike.

        Raises InputError where they cannot be written.
        """
        write_text(Path(directory) / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(Path(directory) / "tokenizer_config.json", self._config_to_save())

    def _config_to_save(self) -> dict[str, Any]:
        config = {name: value for name, value in self.config.items() if name not in PASSING_ENTRIES}
        # Without it transformers cuts at 1e30 tokens, that is, never.
        config["model_max_length"] = self.max_length
        if isinstance(self.backend.model, models.WordPiece):
            config = {**BERT_SPECIAL_TOKENS, **config}
            # The generic class would drop the token types.
            if config.get("tokenizer_class") in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
                config["tokenizer_class"] = "BertTokenizer"
        normalizer = self.backend.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            # transformers takes these from here and not from tokenizer.json, so both must say the same.
            config["do_lower_case"] = normalizer.lowercase
            config["strip_accents"] = normalizer.strip_accents
            config["tokenize_chinese_chars"] = normalizer.handle_chinese_chars
        return config


def check_characters(text: str, name: str) -> None:
    """Raise InputError where the text, which the error calls `name`, holds what is no character."""
    found = None if text.isascii() else SURROGATE.search(text)
    if found is not None:
        raise InputError(
            f"{name} holds {found[0]!r}, which is no character: half of a surrogate pair, or a byte that is not UTF-8"
        )


def _check(texts: Sequence[str]) -> None:
    for text in texts:
        check_characters(text, f"the text {text[:60]!r}")


def longest_first(lengths: list[int], room: int) -> list[int]:
    """How many tokens of each text stay so that together they fit: the longer is cut until both are equal.

    transformers calls it so, too. An odd token stays with the second of two equally long texts.
    """
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    shorter = min(first, second, room // 2)
    longer = min(max(first, second), room - shorter)
    return [shorter, longer] if first <= second else [longer, shorter]


def _read_config(directory: Path) -> dict[str, Any]:
    """The entries of tokenizer_config.json, and those that some versions of transformers keep in other files."""
    files = [directory / "special_tokens_map.json", directory / "tokenizer_config.json"]
    config = {name: value for file in files if file.exists() for name, value in read_json(file).items()}
    template = directory / "chat_template.jinja"  # where transformers writes it since version 5
    if template.exists():
        with open_file(template) as file:
            config["chat_template"] = file.read().decode("utf-8", errors="replace")
    return config


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    with open_file(path) as file:
        content = file.read()
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more specific
        raise InputError(f"{path}: the tokenizers library cannot read this: {error}") from error


def _bert_tokenizer(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """A BERT tokenizer (WordPiece) from a vocab.txt: one token a line; its id is the line's number from 0."""
    with open_file(path) as file:
        lines = file.read().decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    special = {name: _content(config.get(name, token)) for name, token in BERT_SPECIAL_TOKENS.items()}
    for name in ("unk_token", "sep_token", "cls_token"):
        if special[name] not in vocabulary:
            raise InputError(
                f"{path}: {len(vocabulary)} tokens, and none of them is {special[name]} ({name})"
            )

    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    begin, end = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
    )
    backend.add_special_tokens([token for token in special.values() if token in vocabulary])
    return backend


def _content(token: Any) -> str:
    """A special token is written as its text or as an object that holds it."""
    return str(token["content"]) if isinstance(token, dict) and "content" in token else str(token)
