"""Event ids as text: what is one, what is none, which of several counts, and where in a run's log one is."""

from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.errors import RequestError
from streaming.events import Token
from streaming.run import Run
from wires.event_id import PARAMETERS, EventId, last_event_id, position

from .asgi import run_ahead, time_passes
from .test_run import HELLO, STOP, Plays, run_of

RUN = "0123456789abcdef" * 2
ids = st.builds(EventId, st.text("0123456789abcdef", min_size=32, max_size=32), st.integers(0, 10**15 - 1))
# All text there is, and text that is nearly an id; halves of characters too, as nothing here may trip over one.
anything = st.one_of(
    st.text(st.characters()),
    st.from_regex(r"[0-9a-fA-F]{31,33}[-_]?[-+ ]?[0-9]{0,17}\s?", fullmatch=True),
    st.tuples(ids, st.integers(0, 48), st.characters()).map(
        lambda drawn: text_of(drawn[0])[: drawn[1]] + drawn[2] + text_of(drawn[0])[drawn[1] + 1 :]
    ),
)


def text_of(event_id: EventId) -> str:
    return f"{event_id.run}-{event_id.seq}"


def by_each_way(text: str) -> list[tuple[Mapping[str, str], Mapping[str, str]]]:
    """The headers and the query of a client that says `text`, by header and by either parameter."""
    return [({"last-event-id": text}, {}), *(({}, {name: text}) for name in PARAMETERS)]


def refusal(headers: Mapping[str, str], query: Mapping[str, str]) -> RequestError:
    with pytest.raises(RequestError) as raised:
        last_event_id(headers, query)
    return raised.value


def read_back(headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """Return what was understood, as we write it; None where it was refused."""
    try:
        found = last_event_id(headers, query)
    except RequestError:
        return None
    return text_of(found) if found else ""


@given(anything)
@example("")
def test_any_text_is_understood_just_as_it_stands_or_refused(text: str) -> None:
    assert {read_back(*said) for said in by_each_way(text)} in ({text}, {None})


@given(ids)
@example(EventId(RUN, 0))
@example(EventId(RUN, 10**15 - 1))
def test_every_id_we_write_is_read_as_what_it_was(event_id: EventId) -> None:
    assert [last_event_id(*said) for said in by_each_way(text_of(event_id))] == [event_id] * 3


NONE_OF_OURS = {
    "a number": "7",
    "a run alone": RUN,
    "a run and a dash": f"{RUN}-",
    "a number and no run": "-7",
    "a run too short": f"{RUN[1:]}-7",
    "a run too long": f"0{RUN}-7",
    "capital letters": f"{RUN.upper()}-7",
    "no hexadecimal digit": f"g{RUN[1:]}-7",
    "a leading zero": f"{RUN}-07",
    "two zeros": f"{RUN}-00",
    "a sign": f"{RUN}-+7",
    "a negative number": f"{RUN}--7",
    "a fraction": f"{RUN}-7.0",
    "an underscore": f"{RUN}-1_0",
    "another script's digits": f"{RUN}-\u0667",
    "wide digits": f"{RUN}-\uff17",
    "a line's end behind it": f"{RUN}-7\n",
    "a space before it": f" {RUN}-7",
    "a space behind it": f"{RUN}-7 ",
    "two of them": f"{RUN}-7, {RUN}-8",
    "more digits than any run has events": f"{RUN}-{'1' * 16}",
    "very many digits": f"{RUN}-{'1' * 5000}",
    "only a space": " ",
    "half a character": f"{RUN}-\ud800",
}


@pytest.mark.parametrize("text", NONE_OF_OURS.values(), ids=NONE_OF_OURS)
def test_what_is_no_id_of_ours_is_refused_and_not_repeated(text: str) -> None:
    for headers, query in by_each_way(text):
        fault = refusal(headers, query)
        assert (fault.status, fault.code, fault.field) == (400, "invalid_request", "last_event_id")
        assert fault.text == "That is no event id of ours."


def test_who_says_nothing_has_seen_nothing() -> None:
    assert last_event_id({}, {}) is None
    assert last_event_id({"last-event-id": ""}, {"last_event_id": "", "lastEventId": ""}) is None
    assert (
        last_event_id({"last_event_id": f"{RUN}-7"}, {"last-event-id": f"{RUN}-7", "LastEventId": f"{RUN}-7"}) is None
    )


def test_the_header_counts_before_the_url_and_an_empty_one_does_not() -> None:
    newer, older, oldest = (EventId(RUN, seq) for seq in (9, 5, 2))
    query = {"last_event_id": text_of(older), "lastEventId": text_of(oldest)}
    assert last_event_id({"last-event-id": text_of(newer)}, query) == newer
    assert last_event_id({"last-event-id": ""}, query) == older
    assert last_event_id({}, {**query, "last_event_id": ""}) == oldest


def test_a_broken_header_is_not_made_good_by_the_url() -> None:
    assert refusal({"last-event-id": "7"}, {"last_event_id": f"{RUN}-5"}).code == "invalid_request"
    assert last_event_id({"last-event-id": f"{RUN}-5"}, {"last_event_id": "7"}) == EventId(RUN, 5)


def places(run: Run) -> list[int]:
    """Return which of the first ten places one can be at."""
    return [seq for seq in range(10) if is_there(run, seq)]


def is_there(run: Run, seq: int) -> bool:
    try:
        return position(run, EventId(run.id, seq)) == seq
    except RequestError as refused:
        told = (refused.status, refused.code, refused.text, refused.field)
    assert told == (400, "invalid_request", "The run has not come so far.", "last_event_id")
    return False


def test_one_can_be_anywhere_in_a_log_up_to_its_end_and_nowhere_else() -> None:
    async def test() -> list[list[int]]:
        run = run_of(Plays(1.0, HELLO, 1.0, [Token("x")], STOP))
        run.start()
        seen = []
        for _ in range(3):
            seen.append(places(run))
            await time_passes(0.75)
        return seen

    assert run_ahead(test()) == [[0, 1], [0, 1], [0, 1, 2]]


def test_one_can_be_at_the_end_of_a_run_that_is_over() -> None:
    async def test() -> list[int]:
        run = run_of(Plays(HELLO, [Token("x")], STOP))
        run.start()
        await run.wait()
        return places(run)

    assert run_ahead(test()) == [0, 1, 2, 3, 4]


def test_a_run_that_has_not_begun_has_no_place_but_its_beginning() -> None:
    run = run_of(Plays())
    assert (position(run, None), position(run, EventId(run.id, 0))) == (0, 0)
    with pytest.raises(RequestError, match=r"^The run has not come so far\.$"):
        position(run, EventId(run.id, 1))


def test_who_has_seen_nothing_begins_at_the_beginning_of_a_run_that_is_over() -> None:
    async def test() -> int:
        run = run_of(Plays(HELLO, STOP))
        run.start()
        await run.wait()
        return position(run, None)

    assert run_ahead(test()) == 0


@pytest.mark.parametrize("seq", [0, 1, 999])
def test_an_event_of_another_run_is_no_place_in_this_one(seq: int) -> None:
    run, other = run_of(Plays()), run_of(Plays())
    with pytest.raises(RequestError) as raised:
        position(run, EventId(other.id, seq))
    told = (raised.value.status, raised.value.code, raised.value.text, raised.value.field)
    assert told == (400, "invalid_request", "That event is another run's.", "last_event_id")
    assert other.id not in raised.value.text
