/*
 * The memory stamper and the heartbeat: the guest's own witness that a migration was right.
 *
 * Every page of the working set carries a stamp: each of its 512 words is computed from the page's
 * number, its generation and the word's place. The generation of every page is remembered in a table
 * of its own, so that a page which is stale (went back in time), torn between two generations, taken
 * from another page, or lost (zeros) does not match what the table says it must be.
 *
 *      page n, generation g        check against table[n] = g
 *      stamp(n, g, 0..511)   --->  wrong: STAMP WRONG, counted
 *                                  stamp with g + 1, table[n] = g + 1
 *
 * Two readers walk the set: the writer (checks each page, then rewrites it) at stamper.rate_mib_s, and
 * a slow sweep that only reads, so that pages are proved to be whole where nothing is rewritten.
 * The heartbeat is a real-time thread of its own: it must not wait for either.
 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define PAGES_PER_MIB (1024u * 1024u / PAGE_BYTES)
#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)
/* A slice is one wake-up. Short while rewriting, so that dirtying is even; long while only sweeping, so that an idle
 * guest sleeps. */
#define WRITE_SLICE_NS (5 * NS_PER_MS)
#define IDLE_SLICE_NS (50 * NS_PER_MS)
/* After a long stop (the host was busy) a slice may catch up at most this many slices' worth of pages. */
#define CATCH_UP_SLICES 4
/* A lost memory makes every page wrong: past this many lines in a second pages are only counted. */
#define WRONG_LINES_PER_S 32
#define MEMORY_KEPT_FREE_MIB 24

/* Odd, so that k * WORD_STEP is another value for every k. */
#define WORD_STEP UINT64_C(0x9E3779B97F4A7C15)
#define GENERATION_BITS 32
#define GENERATION_MASK UINT64_C(0xFFFFFFFF)

struct stamper {
    uint64_t *pages;
    uint32_t *generation; /* the generation each page must carry */
    uint32_t *visit;      /* the order of this pass: a permutation of the page numbers */
    uint64_t page_count;
    uint64_t next_visit; /* index into visit */
    uint64_t next_sweep; /* page number */
    uint64_t passes;
    uint64_t stamped;
    uint64_t checked;
    uint64_t random_state;
    unsigned wrong_lines; /* printed since the last status line */
    int console_fd;
    int heartbeat_fd; /* -1: the machine has no second serial port */
    bool shuffled;
};

struct heartbeat {
    int fd;
    uint64_t period_ns;
};

static atomic_ullong wrong_count;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t when_ns)
{
    struct timespec when = {.tv_sec = (time_t)(when_ns / NS_PER_S), .tv_nsec = (long)(when_ns % NS_PER_S)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR) {
    }
}

void write_line(int fd, const char *format, ...)
{
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (fd < 0 || length < 0)
        return;
    if ((size_t)length >= sizeof line)
        length = sizeof line - 1;
    /* One write() per line: the terminal driver keeps the bytes of one write together. */
    ssize_t written = write(fd, line, (size_t)length);
    (void)written;
}

/* ---- stamps ---- */

/*
 * A bijection of 64-bit words whose outputs look random. Being one, it can be run backwards: any word found
 * in a wrong page tells which page and generation it came from.
 */
static uint64_t scramble(uint64_t value)
{
    value ^= value >> 32;
    value *= UINT64_C(0xD6E8FEB86659FD93);
    value ^= value >> 32;
    value *= UINT64_C(0xD6E8FEB86659FD93);
    value ^= value >> 32;
    return value;
}

static uint64_t unscramble(uint64_t value)
{
    const uint64_t inverse = UINT64_C(0xCFEE444D8B59A89B); /* of the multiplier above, modulo 2^64 */
    value ^= value >> 32;
    value *= inverse;
    value ^= value >> 32;
    value *= inverse;
    value ^= value >> 32;
    return value;
}

static uint64_t seed_of(uint64_t page, uint32_t generation)
{
    return scramble((page << GENERATION_BITS) | generation);
}

static void write_stamp(uint64_t *words, uint64_t page, uint32_t generation)
{
    uint64_t value = seed_of(page, generation);
    for (size_t k = 0; k < PAGE_WORDS; k++, value += WORD_STEP)
        words[k] = value;
}

/* The number of words that are not as they must be; *first is the first of them. */
static unsigned count_wrong_words(const uint64_t *words, uint64_t page, uint32_t generation, size_t *first)
{
    uint64_t value = seed_of(page, generation);
    uint64_t difference = 0;
    for (size_t k = 0; k < PAGE_WORDS; k++)
        difference |= words[k] ^ (value + k * WORD_STEP);
    if (difference == 0)
        return 0;
    unsigned wrong = 0;
    for (size_t k = PAGE_WORDS; k-- > 0;) {
        if (words[k] != value + k * WORD_STEP) {
            *first = k;
            wrong++;
        }
    }
    return wrong;
}

static void report_wrong(struct stamper *s, uint64_t page, size_t word, unsigned words)
{
    uint64_t found = s->pages[page * PAGE_WORDS + word];
    uint64_t expected = seed_of(page, s->generation[page]) + word * WORD_STEP;
    atomic_fetch_add(&wrong_count, 1);
    if (s->wrong_lines++ >= WRONG_LINES_PER_S)
        return;
    char origin[64];
    uint64_t source = unscramble(found - word * WORD_STEP);
    if (found == 0)
        snprintf(origin, sizeof origin, "zero");
    else if (source >> GENERATION_BITS < s->page_count)
        snprintf(origin, sizeof origin, "page:%" PRIu64 ",generation:%" PRIu64, source >> GENERATION_BITS,
                 source & GENERATION_MASK);
    else
        snprintf(origin, sizeof origin, "foreign");
    const char *format = "STAMP WRONG page=%" PRIu64 " word=%zu expected=%016" PRIx64 " found=%016" PRIx64
                         " generation=%" PRIu32 " wrong_words=%u holds=%s\n";
    write_line(s->console_fd, format, page, word, expected, found, s->generation[page], words, origin);
    write_line(s->heartbeat_fd, format, page, word, expected, found, s->generation[page], words, origin);
}

/* Checks one page. A wrong page is reported and stamped afresh, so that one fault is counted once. */
static void check_page(struct stamper *s, uint64_t page)
{
    uint64_t *words = s->pages + page * PAGE_WORDS;
    size_t first = 0;
    unsigned wrong_words = count_wrong_words(words, page, s->generation[page], &first);
    s->checked++;
    if (wrong_words != 0) {
        report_wrong(s, page, first, wrong_words);
        write_stamp(words, page, s->generation[page]);
    }
}

/* ---- the two walks ---- */

static uint64_t next_random(struct stamper *s)
{
    s->random_state += WORD_STEP;
    return scramble(s->random_state);
}

static uint64_t next_page(struct stamper *s)
{
    uint64_t here = s->next_visit;
    if (s->shuffled) {
        /* One step of a Fisher-Yates shuffle per visit: each pass is a new permutation, at no pause. */
        uint64_t there = here + next_random(s) % (s->page_count - here);
        uint32_t page = s->visit[there];
        s->visit[there] = s->visit[here];
        s->visit[here] = page;
    }
    if (++s->next_visit == s->page_count) {
        s->next_visit = 0;
        s->passes++;
    }
    return s->visit[here];
}

static void rewrite_pages(struct stamper *s, uint64_t count)
{
    for (; count > 0; count--) {
        uint64_t page = next_page(s);
        check_page(s, page);
        /* The table first: a stop between both lines is no fault, the vCPU goes on from there. */
        uint32_t generation = ++s->generation[page];
        write_stamp(s->pages + page * PAGE_WORDS, page, generation);
        s->stamped++;
    }
}

static void sweep_pages(struct stamper *s, uint64_t count)
{
    for (; count > 0; count--) {
        check_page(s, s->next_sweep);
        if (++s->next_sweep == s->page_count)
            s->next_sweep = 0;
    }
}

/* Pages that are due at a rate, after elapsed_ns; what is less than a page is kept for the next slice. */
static uint64_t pages_due(uint64_t *owed_ns, uint64_t elapsed_ns, uint64_t rate_mib_s)
{
    uint64_t page_ns = NS_PER_S / (rate_mib_s * PAGES_PER_MIB);
    *owed_ns += elapsed_ns;
    uint64_t due = *owed_ns / page_ns;
    *owed_ns -= due * page_ns;
    return due;
}

static void print_status(struct stamper *s, uint64_t elapsed_ns, uint64_t stamped_since)
{
    uint64_t tenths = stamped_since * 10 * NS_PER_S / elapsed_ns / PAGES_PER_MIB;
    write_line(s->console_fd,
               "STAMP ok passes=%" PRIu64 " pages=%" PRIu64 " checked=%" PRIu64 " wrong=%llu rate_mib_s=%" PRIu64
               ".%" PRIu64 "\n",
               s->passes, s->page_count, s->checked, atomic_load(&wrong_count), tenths / 10, tenths % 10);
    s->wrong_lines = 0;
}

static _Noreturn void stamp_for_ever(struct stamper *s, const struct guest_options *options)
{
    const bool unlimited = options->rate_mib_s == RATE_UNLIMITED;
    const uint64_t slice_ns = options->rate_mib_s == 0 ? IDLE_SLICE_NS : WRITE_SLICE_NS;
    uint64_t write_owed_ns = 0, sweep_owed_ns = 0, status_stamped = s->stamped;
    uint64_t last_ns = now_ns(), status_ns = last_ns;
    for (;;) {
        if (!unlimited)
            sleep_until(last_ns + slice_ns);
        uint64_t this_ns = now_ns();
        uint64_t elapsed_ns = this_ns - last_ns;
        last_ns = this_ns;
        if (elapsed_ns > CATCH_UP_SLICES * slice_ns)
            elapsed_ns = CATCH_UP_SLICES * slice_ns;
        if (unlimited)
            rewrite_pages(s, PAGES_PER_MIB);
        else if (options->rate_mib_s != 0)
            rewrite_pages(s, pages_due(&write_owed_ns, elapsed_ns, options->rate_mib_s));
        if (options->sweep_mib_s != 0)
            sweep_pages(s, pages_due(&sweep_owed_ns, elapsed_ns, options->sweep_mib_s));
        if (this_ns - status_ns >= NS_PER_S) {
            print_status(s, this_ns - status_ns, s->stamped - status_stamped);
            status_ns = this_ns;
            status_stamped = s->stamped;
        }
    }
}

/* ---- heartbeat ---- */

static void *beat_for_ever(void *argument)
{
    const struct heartbeat *heart = argument;
    uint64_t next_ns = now_ns();
    for (uint64_t sequence = 0;; sequence++) {
        write_line(heart->fd, "HB %" PRIu64 " %" PRIu64 " %llu\n", sequence, now_ns() / NS_PER_MS,
                   atomic_load(&wrong_count));
        next_ns += heart->period_ns;
        uint64_t this_ns = now_ns();
        /* Beats that were missed stay missed: a burst afterwards would hide the gap from the observer. */
        if (next_ns < this_ns)
            next_ns = this_ns;
        sleep_until(next_ns);
    }
    return NULL;
}

/* The second serial port in raw mode, or -1 where the machine has none. */
int open_heartbeat_port(void)
{
    int fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios mode;
    if (fd < 0)
        return -1;
    if (tcgetattr(fd, &mode) < 0) {
        close(fd);
        return -1;
    }
    cfmakeraw(&mode);
    mode.c_cflag |= CLOCAL;
    cfsetspeed(&mode, B115200);
    if (tcsetattr(fd, TCSANOW, &mode) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int start_heartbeat(struct heartbeat *heart)
{
    pthread_attr_t attributes;
    pthread_t thread;
    struct sched_param priority = {.sched_priority = 50};
    pthread_attr_init(&attributes);
    pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
    pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
    pthread_attr_setschedparam(&attributes, &priority);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    int error = pthread_create(&thread, &attributes, beat_for_ever, heart);
    pthread_attr_destroy(&attributes);
    return error;
}

/* ---- start ---- */

static void *map_zeroed(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static bool enough_memory(const struct guest_options *options, uint64_t *free_mib)
{
    struct sysinfo info;
    sysinfo(&info);
    *free_mib = (uint64_t)info.freeram * info.mem_unit >> 20;
    return options->stamper_mib + MEMORY_KEPT_FREE_MIB <= *free_mib;
}

static bool prepare_pages(struct stamper *s, const struct guest_options *options)
{
    s->page_count = options->stamper_mib * PAGES_PER_MIB;
    s->pages = map_zeroed(s->page_count * PAGE_BYTES);
    s->generation = map_zeroed(s->page_count * sizeof *s->generation);
    s->visit = map_zeroed(s->page_count * sizeof *s->visit);
    if (s->pages == NULL || s->generation == NULL || s->visit == NULL)
        return false;
    s->shuffled = options->order == ORDER_RANDOM;
    s->random_state = now_ns();
    for (uint64_t page = 0; page < s->page_count; page++) {
        s->generation[page] = 1;
        s->visit[page] = (uint32_t)page;
        write_stamp(s->pages + page * PAGE_WORDS, page, 1);
    }
    return true;
}

int stamper_main(const struct guest_options *options, int ready_fd)
{
    /* Not blocking: a console client that reads nothing must not stop the stamping. */
    static struct stamper s;
    static struct heartbeat heart;
    s.console_fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    s.heartbeat_fd = open_heartbeat_port();
    uint64_t free_mib;
    if (!enough_memory(options, &free_mib)) {
        write_line(s.console_fd, "GUEST FAILED stamper.mib=%" PRIu64 " but only %" PRIu64 " MiB are free, %d kept\n",
                   options->stamper_mib, free_mib, MEMORY_KEPT_FREE_MIB);
        return 1;
    }
    if (s.heartbeat_fd < 0) {
        write_line(s.console_fd, "GUEST NOTE no second serial port: no heartbeat\n");
    } else {
        heart = (struct heartbeat){.fd = s.heartbeat_fd, .period_ns = options->heartbeat_ms * NS_PER_MS};
        int error = start_heartbeat(&heart);
        if (error != 0) {
            write_line(s.console_fd, "GUEST FAILED heartbeat thread: %s\n", strerror(error));
            return 1;
        }
    }
    if (!prepare_pages(&s, options)) {
        write_line(s.console_fd, "GUEST FAILED memory of the stamper: %s\n", strerror(errno));
        return 1;
    }
    if (write(ready_fd, "r", 1) != 1)
        return 1;
    close(ready_fd);
    stamp_for_ever(&s, options);
}
