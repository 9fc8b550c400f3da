/*
 * The fsync checker: the guest's witness that what the disk acknowledged stays written.
 *
 * It writes numbered records of one block each to a device of its own, makes each durable (fdatasync, or O_DSYNC) at a
 * set rate, and tells the highest number that was acknowledged. Meanwhile it reads all acknowledged records back past
 * the page cache (O_DIRECT), for ever, and tells every one that is not as it was written. After a boot it first reads
 * what the boots before it have left, and counts on from there.
 *
 *      block 0          header: area, number of slots           record n is in slot (n - 1) % slots;
 *      block 1 + slot   record                                  one write is under way at a time, so at most
 *                                                               the slot of record acknowledged + 1 may be torn
 *
 * images/fsync_check.py reads the same blocks from the host, where no guest can cover up what is wrong.
 */
#define _GNU_SOURCE /* O_DIRECT */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_BYTES 4096u
#define BLOCK_WORDS (BLOCK_BYTES / sizeof(uint64_t))
#define BLOCKS_PER_MIB (1024u * 1024u / BLOCK_BYTES)
#define CHUNK_BLOCKS BLOCKS_PER_MIB
#define HEADER_MAGIC UINT64_C(0x4145524148435346) /* "FSCHAREA" */
#define RECORD_MAGIC UINT64_C(0x4452524348435346) /* "FSCHCRRD" */
#define PATTERN_STEP UINT64_C(0x9E3779B97F4A7C15)
#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)
/* Lines for observers: as often as anything can be told apart on a serial line, and no more. */
#define REPORT_NS (20 * NS_PER_MS)
#define IDLE_NS (20 * NS_PER_MS)
#define WRONG_LINES_PER_S 32

struct block {
    uint64_t magic;
    uint64_t area;
    uint64_t sequence; /* of the header: 0 */
    uint64_t slots;
    uint64_t pattern[BLOCK_WORDS - 5];
    uint64_t checksum; /* sum of all words before it, word i times 2 i + 1 */
};

struct checker {
    const struct fsync_options *options;
    int write_fd;
    int read_fd;
    int console_fd;
    int heartbeat_fd;
    uint64_t area;
    uint64_t slots;
    uint64_t acknowledged; /* highest sequence */
    uint64_t checked;
    uint64_t wrong;
    uint64_t passes;     /* how often all acknowledged records were read again */
    uint64_t next_check; /* slot */
    uint64_t pass_end;   /* what was written when this pass began; the rest is the next one's */
    uint64_t longest_ns; /* of a write with its fsync, since the last report */
    unsigned wrong_lines;
    struct block *record;
    struct block *chunk;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void sleep_ns(uint64_t duration_ns)
{
    struct timespec left = {.tv_sec = (time_t)(duration_ns / NS_PER_S), .tv_nsec = (long)(duration_ns % NS_PER_S)};
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
}

/* ---- blocks ---- */

/* Words that change their places change it too. A CRC would cost an emulated processor ten times as much. */
static uint64_t checksum(const struct block *block)
{
    const uint64_t *words = (const uint64_t *)block;
    uint64_t sum = 0;
    for (size_t i = 0; i < BLOCK_WORDS - 1; i++)
        sum += words[i] * (2 * i + 1);
    return sum;
}

/* Another start for every area and sequence, so that no two records have the same bytes in any place. */
static uint64_t pattern_start(uint64_t area, uint64_t sequence)
{
    uint64_t value = area ^ (sequence * UINT64_C(0xD6E8FEB86659FD93));
    value ^= value >> 32;
    value *= UINT64_C(0xD6E8FEB86659FD93);
    value ^= value >> 32;
    return value;
}

static void fill_block(const struct checker *c, struct block *block, uint64_t magic, uint64_t sequence)
{
    uint64_t value = pattern_start(c->area, sequence);
    block->magic = magic;
    block->area = c->area;
    block->sequence = sequence;
    block->slots = c->slots;
    for (size_t k = 0; k < sizeof block->pattern / sizeof *block->pattern; k++, value += PATTERN_STEP)
        block->pattern[k] = value;
    block->checksum = checksum(block);
}

static bool is_whole(const struct block *block, uint64_t magic)
{
    uint64_t value = pattern_start(block->area, block->sequence), difference = 0;
    for (size_t k = 0; k < sizeof block->pattern / sizeof *block->pattern; k++, value += PATTERN_STEP)
        difference |= block->pattern[k] ^ value;
    return difference == 0 && block->magic == magic && block->checksum == checksum(block);
}

static bool is_zero(const struct block *block)
{
    const uint64_t *words = (const uint64_t *)block;
    for (size_t i = 0; i < BLOCK_WORDS; i++)
        if (words[i] != 0)
            return false;
    return true;
}

/* The record that must be in a slot when `highest` are written: 0 where none was yet. */
static uint64_t sequence_in(const struct checker *c, uint64_t slot, uint64_t highest)
{
    if (highest <= slot)
        return 0;
    return slot + 1 + (highest - slot - 1) / c->slots * c->slots;
}

static bool transfer(int fd, void *data, size_t size, uint64_t offset, bool writing)
{
    uint8_t *position = data;
    while (size > 0) {
        ssize_t done = writing ? pwrite(fd, position, size, (off_t)offset) : pread(fd, position, size, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            if (done == 0)
                errno = ENOSPC;
            return false;
        }
        position += done;
        offset += (uint64_t)done;
        size -= (size_t)done;
    }
    return true;
}

/* ---- telling ---- */

static void tell_wrong(struct checker *c, uint64_t slot, uint64_t expected, const struct block *found)
{
    c->wrong++;
    if (c->wrong_lines++ >= WRONG_LINES_PER_S)
        return;
    const char *holds = is_zero(found) ? "zero" : is_whole(found, RECORD_MAGIC) ? "record" : "torn";
    for (int port = 0; port < 2; port++)
        write_line(port == 0 ? c->console_fd : c->heartbeat_fd,
                   "FSYNC WRONG slot=%" PRIu64 " expected=%" PRIu64 " holds=%s found=%" PRIu64 "\n", slot, expected,
                   holds, found->sequence);
}

static void tell_state(const struct checker *c, int fd)
{
    write_line(fd,
               "FSYNC acknowledged=%" PRIu64 " checked=%" PRIu64 " wrong=%" PRIu64 " passes=%" PRIu64
               " longest_ms=%" PRIu64 "\n",
               c->acknowledged, c->checked, c->wrong, c->passes, c->longest_ns / NS_PER_MS);
}

static int fail(const struct checker *c, const char *what)
{
    const char *reason = strerror(errno);
    write_line(c->console_fd, "GUEST FAILED fsync checker: %s %s: %s\n", what, c->options->device, reason);
    write_line(c->heartbeat_fd, "FSYNC FAILED %s: %s\n", what, reason);
    return 1;
}

/* ---- start ---- */

static bool open_device(struct checker *c)
{
    const char *device = c->options->device;
    c->write_fd = open(device, O_RDWR | O_CLOEXEC | (c->options->dsync ? O_DSYNC : 0));
    c->read_fd = open(device, O_RDONLY | O_DIRECT | O_CLOEXEC);
    c->record = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    c->chunk = aligned_alloc(BLOCK_BYTES, CHUNK_BLOCKS * BLOCK_BYTES);
    return c->write_fd >= 0 && c->read_fd >= 0 && c->record != NULL && c->chunk != NULL;
}

static uint64_t device_bytes(const struct checker *c)
{
    uint64_t bytes = 0;
    struct stat status;
    if (ioctl(c->read_fd, BLKGETSIZE64, &bytes) == 0)
        return bytes;
    return fstat(c->read_fd, &status) == 0 && status.st_size > 0 ? (uint64_t)status.st_size : 0;
}

/* Reads the header, or makes one where the device is new. 0, or an exit code. */
static int open_area(struct checker *c)
{
    uint64_t blocks = device_bytes(c) / BLOCK_BYTES;
    if (blocks < 3) {
        errno = ENOSPC;
        return fail(c, "open");
    }
    if (!transfer(c->read_fd, c->record, BLOCK_BYTES, 0, false))
        return fail(c, "read");
    if (is_zero(c->record) && !c->options->once) {
        if (getrandom(&c->area, sizeof c->area, 0) != sizeof c->area)
            return fail(c, "name");
        c->slots = blocks - 1;
        fill_block(c, c->record, HEADER_MAGIC, 0);
        if (!transfer(c->write_fd, c->record, BLOCK_BYTES, 0, true) || fdatasync(c->write_fd) < 0)
            return fail(c, "write");
        return 0;
    }
    /* What holds something else is never written to. */
    if (!is_whole(c->record, HEADER_MAGIC) || c->record->slots > blocks - 1 || c->record->slots < 2) {
        errno = EMEDIUMTYPE;
        return fail(c, "open");
    }
    c->area = c->record->area;
    c->slots = c->record->slots;
    return 0;
}

static bool is_record(const struct checker *c, const struct block *block, uint64_t slot)
{
    return is_whole(block, RECORD_MAGIC) && block->area == c->area && block->sequence > 0 &&
           (block->sequence - 1) % c->slots == slot;
}

typedef void visit_block(struct checker *c, uint64_t slot, const struct block *block);

static bool visit_all(struct checker *c, visit_block *visit)
{
    for (uint64_t slot = 0; slot < c->slots; slot += CHUNK_BLOCKS) {
        uint64_t count = c->slots - slot < CHUNK_BLOCKS ? c->slots - slot : CHUNK_BLOCKS;
        if (!transfer(c->read_fd, c->chunk, count * BLOCK_BYTES, (1 + slot) * BLOCK_BYTES, false))
            return false;
        for (uint64_t i = 0; i < count; i++)
            visit(c, slot + i, c->chunk + i);
    }
    return true;
}

static void note_highest(struct checker *c, uint64_t slot, const struct block *block)
{
    if (block->sequence > c->acknowledged && is_record(c, block, slot))
        c->acknowledged = block->sequence;
}

static void check_block(struct checker *c, uint64_t slot, const struct block *block)
{
    uint64_t expected = sequence_in(c, slot, c->acknowledged);
    if (expected == 0)
        return; /* never written, or torn by the first write that wasn't acknowledged */
    if (slot == c->acknowledged % c->slots && !is_record(c, block, slot))
        return; /* where the write was under way when the guest before this one ended */
    c->checked++;
    if (!is_record(c, block, slot) || block->sequence != expected)
        tell_wrong(c, slot, expected, block);
}

/* ---- work ---- */

static bool write_next(struct checker *c)
{
    uint64_t sequence = c->acknowledged + 1;
    uint64_t slot = (sequence - 1) % c->slots;
    fill_block(c, c->record, RECORD_MAGIC, sequence);
    uint64_t begin_ns = now_ns();
    if (!transfer(c->write_fd, c->record, BLOCK_BYTES, (1 + slot) * BLOCK_BYTES, true))
        return false;
    if (!c->options->dsync && fdatasync(c->write_fd) < 0)
        return false;
    uint64_t took_ns = now_ns() - begin_ns;
    if (took_ns > c->longest_ns)
        c->longest_ns = took_ns;
    c->acknowledged = sequence;
    return true;
}

/* Reads the next `count` slots again. */
static bool check_next(struct checker *c, uint64_t count)
{
    uint64_t written = c->acknowledged < c->slots ? c->acknowledged : c->slots;
    if (written == 0)
        return true;
    if (c->next_check >= c->pass_end) {
        c->next_check = 0;
        c->pass_end = written;
    }
    if (count > CHUNK_BLOCKS)
        count = CHUNK_BLOCKS;
    if (count > c->pass_end - c->next_check)
        count = c->pass_end - c->next_check;
    uint64_t slot = c->next_check;
    if (!transfer(c->read_fd, c->chunk, count * BLOCK_BYTES, (1 + slot) * BLOCK_BYTES, false))
        return false;
    for (uint64_t i = 0; i < count; i++, slot++) {
        uint64_t expected = sequence_in(c, slot, c->acknowledged);
        c->checked++;
        if (!is_record(c, c->chunk + i, slot) || c->chunk[i].sequence != expected)
            tell_wrong(c, slot, expected, c->chunk + i);
    }
    c->next_check = slot;
    if (slot == c->pass_end)
        c->passes++;
    return true;
}

static int work_for_ever(struct checker *c)
{
    const struct fsync_options *options = c->options;
    uint64_t period_ns = options->rate == 0 ? IDLE_NS : options->rate == RATE_UNLIMITED ? 0 : NS_PER_S / options->rate;
    uint64_t next_ns = now_ns(), report_ns = 0, second_ns = now_ns(), checked_ns = now_ns(), owed_ns = 0;
    for (;;) {
        if (options->rate != 0 && !write_next(c))
            return fail(c, "write");
        uint64_t this_ns = now_ns();
        owed_ns += this_ns - checked_ns;
        checked_ns = this_ns;
        if (owed_ns > NS_PER_S)
            owed_ns = NS_PER_S;
        uint64_t blocks_per_s = options->check_mib_s * BLOCKS_PER_MIB;
        uint64_t due = owed_ns * blocks_per_s / NS_PER_S;
        if (due > 0) {
            owed_ns -= due * NS_PER_S / blocks_per_s;
            if (!check_next(c, due))
                return fail(c, "read");
        }
        if (this_ns - report_ns >= REPORT_NS) {
            tell_state(c, c->heartbeat_fd);
            report_ns = this_ns;
            if (this_ns - second_ns >= NS_PER_S) {
                tell_state(c, c->console_fd);
                second_ns = this_ns;
                c->wrong_lines = 0;
            }
            c->longest_ns = 0;
        }
        next_ns += period_ns;
        this_ns = now_ns();
        if (next_ns > this_ns)
            sleep_ns(next_ns - this_ns);
        else
            next_ns = this_ns; /* what a slow disk has cost is not caught up */
    }
}

int fsync_checker_main(const struct fsync_options *options, int console_fd, int heartbeat_fd)
{
    static struct checker c;
    c.options = options;
    c.console_fd = console_fd;
    c.heartbeat_fd = heartbeat_fd;
    if (!open_device(&c))
        return fail(&c, "open");
    int failed = open_area(&c);
    if (failed != 0)
        return failed;
    if (!visit_all(&c, note_highest) || !visit_all(&c, check_block))
        return fail(&c, "read");
    for (int port = 0; port < 2; port++)
        write_line(port == 0 ? console_fd : heartbeat_fd,
                   "FSYNC BEGIN area=%016" PRIx64 " slots=%" PRIu64 " found=%" PRIu64 " wrong=%" PRIu64 "\n", c.area,
                   c.slots, c.acknowledged, c.wrong);
    return options->once ? (c.wrong != 0) : work_for_ever(&c);
}
