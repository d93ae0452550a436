"""Two hundred answers are those of an earlier commit, bit for bit; see `tests/recorded.py`."""

import pytest

import recorded


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> recorded.Networks:
    return recorded.Networks(tmp_path_factory.mktemp("recorded") / "")


@pytest.fixture(scope="module", autouse=True)
def _as_then() -> None:
    made, here = recorded.record()["machine"], recorded.machine()
    if made != here:
        pytest.skip(f"the record was made with {made}, and here is {here}")


@pytest.mark.parametrize("number", range(recorded.COUNT))
def test_an_answer_is_what_it_was(networks: recorded.Networks, number: int) -> None:
    case = recorded.cases()[number]
    assert recorded.answer(networks, case) == recorded.record()["answers"][number], case
