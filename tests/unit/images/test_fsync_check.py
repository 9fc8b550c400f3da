"""The host's check of the fsync checker's records, on areas that the guest's own program has written.

The program is compiled for this machine and writes into a file: so that the two descriptions of the area, in C and in
Python, are compared with each other.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from images.fsync_check import BLOCK_BYTES, FsyncAreaError, FsyncCheck, check_area, main

SOURCES = Path(__file__).parents[3] / "images"
DRIVER = r"""
#include "guest.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static unsigned long long last;
void write_line(int fd, const char *format, ...)
{
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    fputs(line, stdout);
    unsigned long long told;
    if (sscanf(line, "FSYNC acknowledged=%llu", &told) == 1 && told >= last) {
        fflush(stdout);
        _exit(0);
    }
}
int main(int count, char **words)
{
    struct fsync_options options = {.rate = RATE_UNLIMITED, .check_mib_s = 4};
    strcpy(options.device, words[1]);
    last = strtoull(words[2], NULL, 10);
    return count == 3 ? fsync_checker_main(&options, 1, -1) : 2;
}
"""

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler here")


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checker")
    (folder / "driver.c").write_text(DRIVER)
    program = folder / "checker"
    words = ["gcc", "-O2", "-I", str(SOURCES), "-o", str(program)]
    subprocess.run([*words, str(folder / "driver.c"), str(SOURCES / "fsync_checker.c")], check=True)
    return program


@pytest.fixture
def area(tmp_path: Path) -> Path:
    path = tmp_path / "area"
    with path.open("wb") as opened:
        opened.truncate(33 * BLOCK_BYTES)
    return path


def write(checker: Path, area: Path, least: int) -> int:
    """Lets the program write until so many records are acknowledged; answers how many it told."""
    done = subprocess.run([str(checker), str(area), str(least)], capture_output=True, text=True, check=False)
    if "Invalid argument" in done.stdout:
        pytest.skip("this file system has no O_DIRECT")
    assert done.returncode == 0, done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("FSYNC acknowledged=")]
    return int(told[-1].split()[1].partition("=")[2])


def damage(area: Path, slot: int, content: bytes) -> None:
    with area.open("r+b") as opened:
        opened.seek((1 + slot) * BLOCK_BYTES)
        opened.write(content)


def block(area: Path, slot: int) -> bytes:
    return area.read_bytes()[(1 + slot) * BLOCK_BYTES :][:BLOCK_BYTES]


def look(area: Path, acknowledged: int) -> FsyncCheck:
    return check_area(area, acknowledged, partition=0)


@pytest.mark.parametrize("least", [1, 500])
def test_area_as_it_was_written_is_whole(checker: Path, area: Path, least: int) -> None:
    told = write(checker, area, least)

    result = look(area, told)

    assert result.ok
    assert (result.slots, result.highest) == (32, told)
    assert result.checked >= min(told, 31)


def test_every_kind_of_loss_is_told(checker: Path, area: Path) -> None:
    told = write(checker, area, 500)
    under_way = told % 32
    slots = [(under_way + 5 + 3 * number) % 32 for number in range(3)]
    damage(area, slots[0], bytes(BLOCK_BYTES))
    damage(area, slots[1], block(area, slots[1])[:512] + bytes(512))
    damage(area, slots[2], block(area, (slots[2] + 1) % 32))

    result = look(area, told)

    assert not result.ok
    assert {entry.slot: entry.holds for entry in result.wrong} == dict(
        zip(slots, ("zero", "torn", "foreign"), strict=True)
    )
    assert all((entry.expected - 1) % 32 == entry.slot for entry in result.wrong)


def test_write_that_was_cut_off_is_no_loss_but_a_second_one_is(checker: Path, area: Path) -> None:
    told = write(checker, area, 500)
    damage(area, told % 32, b"half")

    assert look(area, told).ok
    damage(area, (told + 1) % 32, b"half")
    assert [entry.slot for entry in look(area, told).wrong] == [(told + 1) % 32]


def test_lost_last_record_is_told_by_the_number_that_was_acknowledged(checker: Path, area: Path) -> None:
    told = write(checker, area, 500)
    damage(area, (told - 1) % 32, bytes(BLOCK_BYTES))

    assert look(area, told - 1).ok
    assert not look(area, told).ok


def test_program_goes_on_where_it_was(checker: Path, area: Path) -> None:
    first = write(checker, area, 100)
    second = write(checker, area, first + 100)

    assert second >= first + 100
    assert look(area, second).ok


def test_what_is_no_area_is_refused(area: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FsyncAreaError):
        look(area, 0)
    with pytest.raises(FsyncAreaError, match="partitions"):
        check_area(area)
    assert main([str(area)]) == 2
    assert "partitions" in capsys.readouterr().err
