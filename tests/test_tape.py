"""What the stepper stands on: the tape folded by module, the lines of a backward, gradients checked on the spot."""

import pytest

import minift
from minift import Tensor
from minift.backward_lines import backward_lines
from minift.errors import InputError
from minift.gradient_check import check_gradients
from minift.tape import Tape
from minift.text_trace import trace_text
from minift.trace import trace


@pytest.fixture
def model(tiny):
    return minift.load(tiny / "model")


@pytest.fixture
def tape(model, monkeypatch):
    monkeypatch.setattr("minift.tape.OPEN_ABOVE", 15)
    return Tape(trace_text(model, "a good film", "positive")[0])


def test_every_step_is_on_the_tape_once_and_in_order(tape):
    folded = [place.name for place in tape.places() if not place.is_step]
    assert folded == ["pooler", "layer.1", "layer.0", "embeddings"]
    groups = list(tape.units)
    for group in groups:
        group.open = True
        groups.extend(group.children)
    assert [number for place in tape.places() for number in place.steps] == list(range(len(tape.trace)))
    assert all(place.is_step for place in tape.places())


def test_there_and_back_again(tape):
    forth = [tape.place]
    while tape.next():
        forth.append(tape.place)
    assert forth[-1].steps[-1] == len(tape.trace) - 1
    back = [tape.place]
    while tape.back():
        back.append(tape.place)
    assert back == forth[::-1]
    assert len(forth) < len(tape.trace), "some of it is folded"


def test_into_a_group_and_out_of_it(tape):
    while tape.place.is_step or "layer" not in tape.place.name:
        assert tape.next()
    group = tape.place
    tape.into()
    assert tape.place.steps[0] == group.steps[0] and tape.place is not group
    while not tape.place.is_step:
        tape.into()
    inside = tape.number
    tape.into()
    assert tape.lines and tape.number == inside
    tape.out()
    assert not tape.lines and tape.number == inside
    while tape.place is not group:
        tape.out()
    assert not group.open


def test_runs_to_a_breakpoint_wherever_it_is_folded_away(tape):
    (wanted,) = [
        number
        for number, step in enumerate(tape.trace)
        if (step.operation, step.module) == ("attention", "bert.encoder.layer.0.attention.self")
    ]
    tape.breakpoints.add(wanted)
    assert tape.run() and tape.number == wanted and tape.place.is_step
    assert not tape.run() and tape.number == len(tape.trace) - 1
    tape.toggle_breakpoint()
    assert tape.breakpoints == {wanted, len(tape.trace) - 1}


def test_the_lines_of_a_backward_show_its_variables_as_they_come():
    def scale(x, by):
        """y = x by"""
        saved_x, saved_by = x.data, by.data

        def backward(dy):
            dx = dy * saved_by
            dby = dy * saved_x
            return dx, dby

        return Tensor(x.data * by.data, parents=(x, by), backward=backward)

    with minift.recording():
        loss = scale(*(Tensor([value], requires_grad=True) for value in (2.0, 3.0)))
    (step,) = trace(loss)
    lines = backward_lines(step)
    first = step.node.source.backward_line
    assert [line.number - first for line in lines] == [1, 2, 3, 3]
    assert [list(line.variables) for line in lines] == [
        ["dy", "saved_by", "saved_x"],
        ["dy", "dx", "saved_by", "saved_x"],
        ["dy", "dx", "dby", "saved_by", "saved_x"],
        ["dy", "dx", "dby", "saved_by", "saved_x"],
    ]
    assert [line.returned for line in lines[:-1]] == [None] * 3
    assert lines[-1].returned == (3.0, 2.0)


def test_every_gradient_of_a_pass_is_right_on_the_spot(model):
    trace, _ = trace_text(model, "a good film", "positive")
    for step in trace:
        for check in check_gradients(step):
            assert check.right, (step.node, check)


def test_a_wrong_backward_is_found_on_the_spot():
    def cube(x):
        """y = x^3"""
        values = x.data

        def backward(dy):
            return (2.9 * dy * values**2,)

        return Tensor(values**3, parents=(x,), backward=backward)

    with minift.recording():
        loss = cube(Tensor([1.0, 2.0], requires_grad=True)).sum()
    steps = trace(loss)
    (of_the_sum,), (of_the_cube,) = map(check_gradients, steps)
    assert of_the_sum.right
    assert not of_the_cube.right
    assert of_the_cube.said / of_the_cube.measured == pytest.approx(2.9 / 3, rel=1e-6)


def test_each_of_two_equal_inputs_is_moved_by_itself():
    x = Tensor([3.0], requires_grad=True)
    with minift.recording():
        loss = (x * x).sum()
    checks = check_gradients(trace(loss)[1])
    assert [check.name for check in checks] == ["a", "b"]
    assert all(check.right for check in checks)


def test_summaries_cannot_be_computed_again(model):
    trace, _ = trace_text(model, "a good film", "positive", keep="summaries")
    for function in (check_gradients, backward_lines):
        with pytest.raises(ValueError, match="recording of arrays"):
            function(trace[0])


@pytest.mark.parametrize("text", ["", "   "])
def test_a_text_without_tokens_is_refused(model, text):
    with pytest.raises(InputError, match="no tokens"):
        trace_text(model, text, "positive")


def test_an_unknown_label_is_refused_and_an_index_taken(model):
    with pytest.raises(InputError, match="no label 'happy'; the model's labels are negative, positive"):
        trace_text(model, "a good film", "happy")
    by_name, by_index = (trace_text(model, "a good film", label)[0] for label in ("positive", "1"))
    assert by_name.loss == by_index.loss
