"""The rows of a table are pytest's, and one that fails hides no other."""

import pytest

from tests import tables


@pytest.mark.parametrize("first", [1, pytest.param(2, id="two")])
@pytest.mark.parametrize(("second", "third"), [("a", 5), ("b", 6)], ids=["A", "B"])
def test_rows(first, second, third, tmp_path, monkeypatch):
    assert isinstance(second, str)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / second).write_text("")
    with pytest.raises(KeyError):
        monkeypatch.delitem(TRIED, "x")
    monkeypatch.setitem(TRIED, "x", 0)


TRIED: dict = {}


def of(items):
    return [item.callspec.params for item in items]


def rows_of(test):
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [row for row, _ in tables._rows([tables._column(*mark.args, **mark.kwargs) for mark in marks])]


def test_they_are_tried_in_pytests_order(request, monkeypatch):
    monkeypatch.setattr(request.config.option, "rows", True)
    made = request.node.parent.ihook.pytest_pycollect_makeitem(
        collector=request.node.parent, name="test_rows", obj=test_rows
    )
    assert of(made) == rows_of(test_rows)
    assert len(made) == 4


def failing(check, rows, request, **fixtures):
    test = pytest.mark.parametrize("row", rows)(check)
    return tables.table_of(request.node.parent, "test_x", test).obj(**fixtures)


def test_each_row_that_fails_is_shown_with_its_values_and_what_was_compared(request):
    def check(row):
        assert row in (1, 4)
        with pytest.raises(ValueError, match="four"):
            raise ValueError("four" if row == 4 else "one")

    with pytest.raises(pytest.fail.Exception) as failed:
        failing(check, [1, 2, 3, 4], request)
    text = str(failed.value)
    assert text.startswith("3 of 4 rows failed")
    assert [line for line in text.splitlines() if line.startswith("---")] == [
        f"--- row {n}: row={n}" for n in (1, 2, 3)
    ]
    assert "assert 2 in (1, 4)" in text


def test_a_row_that_is_skipped_skips_no_other(request):
    tried = []

    def check(row):
        if row < 3:
            pytest.skip("not here")
        tried.append(row)

    with pytest.raises(pytest.skip.Exception, match="2 of 3 rows: not here"):
        failing(check, [1, 2, 3], request)
    assert tried == [3]


def test_a_row_that_fails_is_shown_where_another_is_skipped(request):
    def check(row):
        if row == 1:
            pytest.skip("not here")
        assert row == 3

    with pytest.raises(pytest.fail.Exception, match="1 of 3 rows failed"):
        failing(check, [1, 2, 3], request)


def test_a_row_that_only_begins_has_failed(request):
    """A test of which something is left that nobody waits for, such as a Deferred."""

    def check(row):
        return object()

    with pytest.raises(pytest.fail.Exception, match="2 of 2 rows failed"):
        failing(check, [1, 2], request)


@pytest.fixture
def prepared():
    return None


def needs_a_fixture(row, prepared):
    pass


async def waits(row):
    pass


@pytest.mark.usefixtures("prepared")
def uses_a_fixture(row):
    pass


@pytest.mark.xfail
def fails(row):
    pass


def yields(row):
    yield


@pytest.mark.parametrize("check", [needs_a_fixture, waits, uses_a_fixture, fails, yields])
def test_what_is_set_up_for_each_row_stays_one_test_a_row(check, request):
    test = pytest.mark.parametrize("row", [1, 2])(check)
    assert tables.table_of(request.node.parent, "test_x", test) is None


def test_rows_can_be_chosen_by_a_word(request, monkeypatch):
    parent = request.node.parent
    monkeypatch.setattr(request.config.option, "rows", False)
    monkeypatch.setattr(request.config.option, "keyword", "two")
    made = parent.ihook.pytest_pycollect_makeitem(collector=parent, name="test_rows", obj=test_rows)
    assert len([item for item in made if "two" in item.name]) == 2


def test_rows_that_have_marks_stay_tests(request):
    def check(row):
        pass

    for rows, is_table in (
        ([1, pytest.param(2, marks=pytest.mark.slow)], False),
        ([1, pytest.param(2, id="two")], True),
    ):
        test = pytest.mark.parametrize("row", rows)(check)  # of a lambda it would make no test
        assert (tables.table_of(request.node.parent, "test_x", test) is not None) == is_table
        check.pytestmark = []
