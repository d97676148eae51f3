"""Files of texts and labels: what is read, in which order, and what is refused with which words."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from small_vocabulary import write_vocabulary

from minift.data import Dataset, SingleTexts, batches, pack, shuffled
from minift.errors import InputError
from minift.tokenizer import Encoding, Tokenizer


def write(directory, name, content):
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- The three formats ----


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "sentence\tlabel\ngood film\t1\na bore, a \"bore\"\t0\n"),
        ("a.TSV", "label\tother\ttext\n1\tx\tgood film\n0\ty\ta bore, a \"bore\""),
        ("a.csv", 'sentence,label\ngood film,1\n"a bore, a ""bore""",0\n'),
        ("a.jsonl", '{"text": "good film", "label": 1}\n\n{"label": 0, "text": "a bore, a \\"bore\\""}\n'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_formats(tmp_path, name, content, ending, mark):
    dataset = Dataset(write(tmp_path, name, mark + content.replace("\n", ending)))
    assert list(dataset) == [("good film", 1), ('a bore, a "bore"', 0)]
    assert dataset[1] == dataset[-1] and len(dataset) == 2 and dataset.labels == [0, 1]
    with pytest.raises(IndexError):
        dataset[2]


def test_a_tsv_is_split_at_tabs_alone(tmp_path):
    text = '"open quote, comma\x0bvertical tab\u2028separator \x85'
    dataset = Dataset(write(tmp_path, "a.tsv", f"sentence\tlabel\n{text}\tyes\n\tno\n"))
    assert list(dataset) == [(text, "yes"), ("", "no")]


def test_a_quoted_csv_field_may_hold_line_breaks(tmp_path):
    dataset = Dataset(write(tmp_path, "a.csv", 'sentence,label\n"two\nlines, one text",a\nsecond,b\n'))
    assert [dataset[i] for i in (1, 0, 1)] == [
        ("second", "b"),
        ("two\nlines, one text", "a"),
        ("second", "b"),
    ]


def test_pairs(tmp_path):
    dataset = Dataset(write(tmp_path, "a.tsv", "sentence1\tsentence2\tlabel\ngood\tbad\t1\n"))
    assert dataset[0] == (("good", "bad"), 1)


def test_where_one_text_is_expected_one_of_two_columns_must_be_chosen(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence1\tsentence2\tlabel\ngood\tbad\t1\n")
    with pytest.raises(InputError) as caught:
        SingleTexts(path)
    assert str(caught.value) == (
        f"{path}: one text a row was expected, found two, 'sentence1' and 'sentence2'; "
        "choose one with --text-column sentence1"
    )
    assert SingleTexts(path, "sentence2")[0] == ("bad", 1)


def test_other_columns_by_option(tmp_path):
    path = write(tmp_path, "a.tsv", "question\tanswer\tsentence\tverdict\nq\ta\ts\tno\n")
    assert Dataset(path, "question", "answer", "verdict")[0] == (("q", "a"), "no")
    assert Dataset(path, text_column="answer", label_column="verdict")[0] == ("a", "no")


def test_a_txt_has_a_text_in_every_line(tmp_path):
    path = write(tmp_path, "a.txt", "\ufeffsentence\r\n\n a\tb \nlast\n\n")
    dataset = Dataset(path, require_label=False)
    assert [dataset[index] for index in range(len(dataset))] == [
        ("sentence", None),
        ("", None),
        (" a\tb ", None),
        ("last", None),
        ("", None),
    ]


def test_without_labels(tmp_path):
    dataset = Dataset(write(tmp_path, "a.tsv", "text\ngood\n\nbad\n"), require_label=False)
    assert list(dataset) == [("good", None), ("bad", None)] and dataset.labels == []


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        (["10", "9", "-1"], [-1, 9, 10]),
        (["b", "a", "10"], ["10", "a", "b"]),
        (["01", "1"], ["01", "1"]),  # as integers they would be one
        (["5.0", "4.25"], ["4.25", "5.0"]),
    ],
)
def test_labels_are_integers_where_all_are(tmp_path, written, labels):
    dataset = Dataset(
        write(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"x\t{label}\n" for label in written))
    )
    assert dataset.labels == labels
    assert [str(dataset[i][1]) for i in range(len(written))] == written


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_spaces_around_a_label_make_no_other_class(tmp_path, name):
    written = ["pos", "pos ", " pos", "neg\u00a0"]
    if name == "a.jsonl":
        content = "".join(json.dumps({"text": "x", "label": label}) + "\n" for label in written)
    else:
        separator = "\t" if name == "a.tsv" else ","
        content = "".join(
            f"{text}{separator}{label}\n"
            for text, label in [("text", "label"), *(("x", label) for label in written)]
        )
    dataset = Dataset(write(tmp_path, name, content))
    assert dataset.labels == ["neg", "pos"] and dataset.label_ids(["neg", "pos"]).tolist() == [1, 1, 1, 0]


# ---- Labels of the model ----


@pytest.mark.parametrize(
    ("written", "names", "ids"),
    [
        (["no", "yes", "no"], ["no", "yes"], [0, 1, 0]),
        (["no", "yes", "no"], ["yes", "maybe", "no"], [2, 0, 2]),
        (["1", "0"], ["no", "yes"], [1, 0]),  # an index instead of a name
        (["1", "yes"], ["no", "yes"], [1, 1]),
        (["1", "2"], [1, 2], [0, 1]),  # integers that are names are no indices
        (["1", "2"], ["2", "1"], [1, 0]),
    ],
)
def test_label_ids(tmp_path, written, names, ids):
    dataset = Dataset(
        write(tmp_path, "a.tsv", "text\tlabel\n" + "".join(f"x\t{label}\n" for label in written))
    )
    assert dataset.label_ids(names).tolist() == ids and dataset.label_ids(names).dtype == np.int64


@pytest.mark.parametrize(
    ("written", "names", "message"),
    [
        ("maybe", ["no", "yes"], r"line 5: label 'maybe', expected one of: 'no', 'yes'"),
        ("2", ["no", "yes"], "line 5: label '2', expected one of"),
        ("0", [1, 2], "line 5: label '0', expected one of: 1, 2"),
    ],
)
def test_an_unknown_label_names_its_line(tmp_path, written, names, message):
    first = str(names[0])
    content = f'text,label\nx,{first}\n"two\nlines",{first}\ny,{written}\ny,{written}\n'
    path = write(tmp_path, "a.csv", content)
    with pytest.raises(InputError, match=message.replace("'0'", "'?0'?").replace("'2'", "'?2'?")) as caught:
        Dataset(path).label_ids(names)
    assert str(caught.value).startswith(f"{path}, ")


# ---- Bad files ----


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xls", "text\tlabel\n", r": unknown ending '.xls'; the endings are .tsv, .csv, .jsonl, .txt"),
        ("a.txt", "text\tlabel\n", r": no column 'label'; there are: 'text'"),
        ("a.tsv", "", ": the file is empty"),
        ("a.jsonl", "\n\n", ": the file is empty"),
        ("a.tsv", "text\tlabel\n", r": a header \('text', 'label'\) and no rows"),
        ("a.csv", "text,label\n\n", r": a header \('text', 'label'\) and no rows"),
        ("a.tsv", "txt\tlabel\nx\t1\n", r": no column 'sentence' or 'text', or .*; there are: 'txt', 'la"),
        ("a.tsv", "text\tlable\nx\t1\n", ": no column 'label'; there are: 'text', 'lable'"),
        ("a.tsv", "text\tlabel\tlabel\nx\t1\t2\n", ": more than one column 'label'"),
        ("a.jsonl", '{"text": "x"}', ": no column 'label'; there are: 'text'"),
        ("a.tsv", "text\tlabel\nx\t1\n\ny\n", r", line 4: 1 column, 2 were expected \('text', 'label'\)"),
        ("a.tsv", "text\tlabel\nx\t1\ty\n", ", line 2: 3 columns, 2 were expected"),
        ("a.csv", "text,label\nx,1\na, b,2\n", ", line 3: 3 columns, 2 were expected"),
        ("a.csv", 'text,label\n"two\nlines",1\n"open,2\nx,3\n', ", line 4: not CSV: unexpected end of data"),
        ("a.csv", 'text,label\n"a" b,2\n', ", line 2: not CSV: ',' expected after '\"'"),
        ("a.csv", 'text,label\nx,1\n"' + "x" * 200_000, ", line 3: not CSV: field larger than field limit"),
        ("a.csv", "text,label\rx,1\r", ", line 1: not CSV: new-line character seen in unquoted field"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"', ", line 2: not JSON: .*, at column 13$"),
        ("a.jsonl", '{"text": "x", "label": 1}\n[1]', ", line 2: a JSON object was expected, found list"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}', ", line 2: no key 'label'; there are"),
        ("a.jsonl", '{"text": 5, "label": 1}', ", line 1: 'text' was to be a text, found 5"),
        ("a.jsonl", '{"text": null, "label": 1}', ", line 1: 'text' was to be a text, found null"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', r", line 1: 'text' holds '\\ud800', which is no char"),
        ("a.jsonl", '{"text": "x", "label": "\\ud800"}', r", line 1: the label holds '\\ud800', which is no char"),
        ("a.jsonl", '{"text": "x", "label": [1]}', r", line 1: label was to be .*, found \[1\]"),
        ("a.jsonl", '{"text": "x", "label": true}', r", line 1: label was to be .*, found true"),
        ("a.jsonl", '{"text": "x", "label": NaN}', r", line 1: label was to be .*, found NaN"),
        ("a.jsonl", '{"text": "x", "label": 1e999}', r", line 1: label was to be .*, found Infinity"),
        ("a.jsonl", "[" * 100_000, ", line 1: not JSON that can be read: nested too deeply"),
        ("a.jsonl", "1" * 5000, ", line 1: not JSON: "),
        ("a.tsv", "text\tlabel\nx\t \n", ", line 2: the label is empty"),
        ("a.tsv", b"text\tlabel\nx\t1\ncaf\xe9\t1\n", ", line 3, byte 4: 0xe9 is not UTF-8"),
        ("a.csv", b"text,label\nx,1\ncaf\xe9,1\n", ", line 3, byte 4: 0xe9 is not UTF-8"),
        ("a.tsv", "text\tlabel\n".encode("utf-16"), ", line 1, byte 1: 0xff is not UTF-8"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_clear_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as caught:
        Dataset(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"a.tsv: there is no such file"):
        Dataset(tmp_path / "a.tsv")
    with pytest.raises(InputError, match="this is a directory, a file was expected"):
        Dataset(tmp_path)


def test_a_pair_column_alone(tmp_path):
    path = write(tmp_path, "a.tsv", "text\tb\tlabel\nx\ty\t1\n")
    with pytest.raises(
        InputError, match="pair_column 'b' is the second text; text_column, the first, is missing"
    ):
        Dataset(path, pair_column="b")
    with pytest.raises(InputError, match="no column 'c'; there are: 'text', 'b', 'label'"):
        Dataset(path, text_column="c")


@pytest.mark.parametrize("columns", [("label",), ("text", "text"), ("text", None, "text")])
def test_a_column_is_chosen_once(tmp_path, columns):
    path = write(tmp_path, "a.tsv", "text\tlabel\nx\t1\n")
    with pytest.raises(
        InputError, match=rf"a.tsv: column '{columns[0]}' is chosen twice; text, pair and label"
    ):
        Dataset(path, *columns)


def test_a_file_that_changes_in_use(tmp_path):
    path = write(tmp_path, "a.tsv", "text\tlabel\nx\t1\ny\t0\n")
    dataset = Dataset(path)
    path.write_text("")
    with pytest.raises(InputError, match="the file was changed while in use, row 2 is broken"):
        dataset[1]


def test_a_large_file_is_not_held_in_memory(tmp_path):
    rows = 20_000
    lines = (f"{'long text ' * 50}{row}\t{row % 3}\n" for row in range(rows))  # 10 MB
    path = write(tmp_path, "a.tsv", "text\tlabel\n" + "".join(lines))
    tracemalloc.start()
    dataset = Dataset(path)
    total = sum(int(dataset[row][1]) for row in range(0, rows, 100))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == sum(row % 3 for row in range(0, rows, 100)) and len(dataset) == rows
    assert held < 20 * rows and peak < 1_000_000


# ---- Batches ----


def test_pack():
    encodings = [Encoding([2, 5, 6, 3], [0, 0, 0, 0], False), Encoding([2, 3, 7, 3], [0, 0, 1, 1], True)]
    batch = pack(encodings, [1, 0])
    assert batch.ids.tolist() == [2, 5, 6, 3, 2, 3, 7, 3]
    assert batch.token_types.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch.offsets.tolist() == [0, 4, 8] and batch.segments.tolist() == [[0, 4], [4, 8]]
    assert batch.labels is not None and batch.labels.tolist() == [1, 0]
    assert (len(batch), batch.tokens, batch.truncated) == (2, 8, 1)
    assert {array.dtype for array in (batch.ids, batch.token_types, batch.positions, batch.offsets)} == {
        np.dtype(np.int64)
    }


def test_pack_nothing():
    batch = pack([])
    assert (len(batch), batch.tokens, batch.labels) == (0, 0, None)
    assert batch.offsets.tolist() == [0] and batch.segments.shape == (0, 2)


@pytest.fixture
def twenty_rows(tmp_path):
    """Row i has i words, so the texts of a batch are known by their lengths."""
    lines = "".join(json.dumps({"text": "a " * row, "label": row % 3}) + "\n" for row in range(20))
    return Dataset(write(tmp_path, "a.jsonl", lines)), Tokenizer.from_directory(write_vocabulary(tmp_path))


def lengths(batch_list):
    return [np.diff(batch.offsets).tolist() for batch in batch_list]


def test_batches_in_the_order_of_the_file(twenty_rows):
    dataset, tokenizer = twenty_rows
    all_batches = list(batches(dataset, tokenizer, 8, labels=dataset.label_ids([0, 1, 2])))
    assert [len(batch) for batch in all_batches] == [8, 8, 4]
    assert list(itertools.chain(*lengths(all_batches))) == [row + 2 for row in range(20)]
    assert np.concatenate([batch.labels for batch in all_batches]).tolist() == [row % 3 for row in range(20)]


def test_shuffled_batches_keep_texts_and_labels_together(twenty_rows):
    dataset, tokenizer = twenty_rows
    all_batches = list(batches(dataset, tokenizer, 8, labels=dataset.label_ids([0, 1, 2]), seed=5))
    rows = np.array(list(itertools.chain(*lengths(all_batches)))) - 2
    assert sorted(rows) == list(range(20)) and list(rows) != list(range(20))
    assert np.concatenate([batch.labels for batch in all_batches]).tolist() == (rows % 3).tolist()


def test_resuming_gives_the_batches_that_would_have_come(twenty_rows):
    dataset, tokenizer = twenty_rows
    whole = lengths(batches(dataset, tokenizer, 6, seed=1, epoch=2))
    for start in range(5):
        assert lengths(batches(dataset, tokenizer, 6, seed=1, epoch=2, start=start)) == whole[start:]


def test_what_is_passed_over_is_not_read(twenty_rows):
    _, tokenizer = twenty_rows

    class Rows(list):
        def __getitem__(self, row):
            assert row >= 8
            return super().__getitem__(row)

    assert lengths(batches(Rows([("a", 0)] * 10), tokenizer, 4, start=2)) == [[3, 3]]


def test_the_order_depends_on_seed_and_epoch_alone():
    assert shuffled(10, 0, 0).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]  # the same on every machine
    orders = {tuple(shuffled(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)
    # Every row comes to every place: over many epochs the mean place is the middle.
    places = np.mean([np.argsort(shuffled(20, 7, epoch)) for epoch in range(2000)], axis=0)
    np.testing.assert_allclose(places, 9.5, atol=0.6)  # the standard error is 0.13
