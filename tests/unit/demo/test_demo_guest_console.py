"""What a guest's console proves."""

from demo.guest_console import facts_of

_STATUS = "STAMP ok passes=1 pages=16384 checked=9 wrong={} rate_mib_s=19.9"


def test_facts_of_a_healthy_guest() -> None:
    facts = facts_of(
        "\r\n".join(["noise", "GUEST READY", _STATUS.format(0), _STATUS.format(0), "STAMP ok pas"])
    )
    assert (facts.boots, len(facts.statuses), facts.wrong, facts.complaints) == (1, 2, 0, ())


def test_facts_of_wrong_stamps_and_reboots_are_told() -> None:
    wrong = "STAMP WRONG page=1 word=0 expected=0000000000000001 found=0000000000000002"
    text = f"GUEST READY\n{wrong} generation=1 wrong_words=512 holds=zero\n{_STATUS.format(3)}\nGUEST READY\n"
    facts = facts_of(text)
    assert (facts.boots, facts.wrong, len(facts.complaints)) == (2, 3, 1)
