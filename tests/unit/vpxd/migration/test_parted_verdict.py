"""What became of a migration whose home moves: source and destination have an owner record each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpxd.migration.progress import MigrationProgress, Phase
from vpxd.migration.verdict import HostAnswer, Verdict, decide_parted, last_word

SRC, DST = "uuid-source", "uuid-destination"
S, F, R, U = Verdict.SUCCEEDED, Verdict.FAILED, Verdict.RUNNING, Verdict.UNDECIDED


def says(owner: str, phase: Phase, *, is_open: bool = True) -> HostAnswer:
    return HostAnswer(True, MigrationProgress(phase), owner_host_uuid=owner, owner_epoch=2, open=is_open)


GIVEN = says(DST, Phase.SWITCHOVER)
KEPT = says(SRC, Phase.PRE_COPY)
TAKEN = says(DST, Phase.SWITCHOVER)
SETTLED = says(DST, Phase.SUCCEEDED)
WAITS = says(SRC, Phase.CHECKPOINT)
GONE = says("", Phase.FAILED, is_open=False)
GIVES_BACK = says(DST, Phase.FAILED)


@pytest.mark.parametrize(
    ("source", "destination", "verdict", "word"),
    [
        (KEPT, WAITS, R, None),
        (KEPT, GONE, R, None),
        (says(SRC, Phase.FAILED, is_open=False), GONE, F, None),
        # Given away, and COMMIT is on its way, lost, or refused: nothing is known before the destination has ended.
        (GIVEN, WAITS, U, None),
        (GIVEN, None, U, None),
        (GIVEN, GIVES_BACK, U, None),
        (GIVEN, GONE, U, False),
        # Taken: nobody but the destination can undo that.
        (GIVEN, TAKEN, S, None),
        (None, TAKEN, S, None),
        (GIVEN, SETTLED, S, True),
        # The source has heard it; its destination is silent.
        (SETTLED, None, S, None),
        (None, None, U, None),
        (None, WAITS, U, None),
        (says("uuid-third", Phase.SWITCHOVER), WAITS, F, None),
    ],
)
def test_given_away_is_no_success_until_the_destination_has_taken_it(
    source: HostAnswer | None, destination: HostAnswer | None, verdict: Verdict, word: bool | None
) -> None:
    assert decide_parted(SRC, DST, source, destination) is verdict
    assert last_word(DST, source, destination) is word


ANSWERS = st.one_of(
    st.none(),
    st.builds(
        HostAnswer,
        known=st.booleans(),
        progress=st.builds(MigrationProgress, phase=st.sampled_from(Phase)),
        owner_host_uuid=st.sampled_from(["", SRC, DST]),
        owner_epoch=st.integers(0, 5),
        open=st.booleans(),
    ),
)


@given(ANSWERS, ANSWERS)
def test_a_word_is_brought_only_to_a_source_that_gave_away_and_never_against_the_verdict(
    source: HostAnswer | None, destination: HostAnswer | None
) -> None:
    word, verdict = last_word(DST, source, destination), decide_parted(SRC, DST, source, destination)
    if word is not None:
        assert source is not None
        assert source.owner_host_uuid == DST
    if word is True:
        assert verdict is S
    if word is False:
        assert verdict is not F  # until the source has heard it, its guest is nobody's
