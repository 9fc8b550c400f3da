"""The text of .vmx files: what is written is read back, what is hostile is refused with line and reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.vm import config_file
from hostd.vm.config_file import VmxEntries, parse, render
from runtime.faults import InvalidVmConfig

_KEYS = st.from_regex(r"\.?[A-Za-z0-9][A-Za-z0-9._:-]{0,30}", fullmatch=True)
_VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
_ENTRIES = st.lists(st.tuples(_KEYS, _VALUES), max_size=20, unique_by=lambda entry: entry[0].lower()).map(
    dict
)


@given(_ENTRIES)
def test_render_any_entries_parse_gives_them_back(entries: dict[str, str]) -> None:
    assert dict(parse(render(entries)).items()) == entries


@given(_ENTRIES)
def test_render_any_entries_is_one_line_each_without_control_characters(entries: dict[str, str]) -> None:
    text = render(entries).decode()
    assert text.count("\n") == len(entries)
    assert not any(ord(character) < 32 or ord(character) == 127 for character in text.replace("\n", ""))


@given(st.binary(max_size=400))
def test_parse_any_bytes_gives_entries_or_invalid_vm_config(content: bytes) -> None:
    try:
        entries = parse(content)
    except InvalidVmConfig:
        return
    assert parse(render(dict(entries.items()))).items() == entries.items()


def test_parse_file_of_the_real_product_keeps_what_it_does_not_know() -> None:
    text = b'#!/usr/bin/vmware\r\n.encoding = "UTF-8"\r\n\r\n# note\r\n'
    text += b'displayName = "say |22hi|22"\r\nscsi0:0.present="TRUE"\r\n'
    entries = parse(text)
    assert entries["DISPLAYNAME"] == 'say "hi"'
    assert entries["scsi0:0.present"] == "TRUE"
    changed = parse(render(entries.updated({"displayname": "new"})))
    assert list(changed) == [".encoding", "displayName", "scsi0:0.present"]
    assert changed["displayName"] == "new"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'a = "1"\nb 2\n', "Line 2"),
        (b'a = "1" x\n', "Line 1"),
        (b'a = "1"\nA = "2"\n', "Line 2 of the .vmx file repeats the key of line 1"),
        (b'a = "one|zz"\n', "Line 1 of the .vmx file has a |"),
        (b'a = "one|F"\n', "Line 1 of the .vmx file has a |"),
        (b'a = "x\x07"\n', "Line 1 of the .vmx file has a control character"),
        (b'ok = "1"\n\xff = "1"\n', "Line 2 of the .vmx file isn't UTF-8"),
        (b'ok = "1"\n\xc3\x84 = "1"\n', "Line 2 of the .vmx file has a key"),
        (b'a = "' + b"x" * config_file.MAX_FILE_BYTES + b'"', "longer than"),
        (b"".join(b'k%d = ""\n' % number for number in range(2000)), "more than"),
        (b'a = "1\nb = "2"\n', "Line 1"),
    ],
)
def test_parse_hostile_file_names_line_and_reason(content: bytes, words: str) -> None:
    with pytest.raises(InvalidVmConfig) as caught:
        parse(content)
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["", "a b", 'a"', "a=b", "ä", "x" * 200, "a\n"])
def test_render_impossible_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidVmConfig):
        render({key: "1"})


def test_render_too_much_is_refused() -> None:
    with pytest.raises(InvalidVmConfig):
        render({"a": "x" * config_file.MAX_FILE_BYTES})
    with pytest.raises(InvalidVmConfig):
        render({"a": "\ud800"})


def test_entries_keys_in_any_case() -> None:
    entries = VmxEntries({"memSize": "64"})
    assert "MEMSIZE" in entries
    assert entries.get("memsize") == "64"
    assert len(entries) == 1
