/*
 * The CPU exerciser: executes instructions of CPU features for ever, as programs do that looked at CPUID when they
 * started and never again. A guest that was moved to a host without the feature dies of them; here that is told.
 *
 *      CPU <sequence> avx2=ok sse4.2=ok          each period, on the heartbeat port
 *      CPU <sequence> avx2=SIGILL sse4.2=ok      the processor doesn't know the instruction
 *      CPU <sequence> avx2=WRONG sse4.2=ok       it knows it and computes something else
 *      CPU <sequence> avx2=absent sse4.2=ok      CPUID didn't have it at the start: it isn't executed
 */
#include "guest.h"

#include <cpuid.h>
#include <immintrin.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PERIOD_US 50000

/* ---- one instruction of each feature, on values that the compiler can't know ---- */

static volatile uint64_t seven = 7;

__attribute__((target("ssse3"))) static bool run_ssse3(void)
{
    __m128i words = _mm_set1_epi32(-(int)seven);
    return _mm_cvtsi128_si32(_mm_abs_epi32(words)) == 7;
}

__attribute__((target("sse4.1"))) static bool run_sse41(void)
{
    __m128i words = _mm_mullo_epi32(_mm_set1_epi32((int)seven), _mm_set1_epi32(6));
    return _mm_cvtsi128_si32(words) == 42;
}

/* CRC-32C of eight bytes, as a table-free loop over the reversed polynomial computes it. */
__attribute__((target("sse4.2"))) static bool run_sse42(void)
{
    uint64_t value = seven * UINT64_C(0x0123456789ABCDEF), crc = UINT32_MAX;
    uint64_t expected = crc ^ value;
    for (int bit = 0; bit < 64; bit++)
        expected = (expected >> 1) ^ ((expected & 1) ? UINT64_C(0x82F63B78) : 0);
    return _mm_crc32_u64(crc, value) == expected;
}

__attribute__((target("popcnt"))) static bool run_popcnt(void)
{
    return _mm_popcnt_u64(seven) == 3;
}

__attribute__((target("avx"))) static bool run_avx(void)
{
    __m256d sum = _mm256_add_pd(_mm256_set1_pd((double)seven), _mm256_set1_pd(0.5));
    return _mm256_cvtsd_f64(sum) == 7.5;
}

__attribute__((target("avx2"))) static bool run_avx2(void)
{
    __m256i words = _mm256_mullo_epi32(_mm256_set1_epi32((int)seven), _mm256_set1_epi32(6));
    int out[8];
    _mm256_storeu_si256((__m256i *)out, words);
    return out[0] == 42 && out[7] == 42;
}

__attribute__((target("bmi2"))) static bool run_bmi2(void)
{
    return _pext_u64(UINT64_C(0xF0F0), seven << 12) == 7;
}

static const struct feature {
    const char *name; /* QEMU's */
    bool (*run)(void);
} features[] = {
    {"ssse3", run_ssse3}, {"sse4.1", run_sse41}, {"sse4.2", run_sse42}, {"popcnt", run_popcnt},
    {"avx", run_avx},     {"avx2", run_avx2},    {"bmi2", run_bmi2},
};
#define FEATURES (sizeof features / sizeof features[0])

/* What CPUID has, and where the state has to be saved (AVX), what the kernel does. Intel's manual, volume 1, 14.3. */
static unsigned read_cpuid(void)
{
    unsigned a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    found |= (c & bit_SSSE3 ? 1u : 0) << 0 | (c & bit_SSE4_1 ? 1u : 0) << 1 | (c & bit_SSE4_2 ? 1u : 0) << 2 |
             (c & bit_POPCNT ? 1u : 0) << 3;
    bool saved = false;
    if (c & bit_OSXSAVE) {
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        saved = (low & 6) == 6;
    }
    found |= (saved && c & bit_AVX ? 1u : 0) << 4;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
        found |= (saved && b & bit_AVX2 ? 1u : 0) << 5 | (b & bit_BMI2 ? 1u : 0) << 6;
    return found;
}

bool parse_cpu_features(const char *text, unsigned *wanted)
{
    *wanted = 0;
    while (*text != '\0') {
        size_t length = strcspn(text, ","), i = 0;
        while (i < FEATURES && (strlen(features[i].name) != length || strncmp(features[i].name, text, length) != 0))
            i++;
        if (i == FEATURES)
            return false;
        *wanted |= 1u << i;
        text += length + (text[length] == ',');
    }
    return *wanted != 0;
}

/* ---- for ever ---- */

static sigjmp_buf before;

static void on_illegal(int number)
{
    siglongjmp(before, number);
}

static const char *exercise(const struct feature *feature)
{
    if (sigsetjmp(before, 1) != 0)
        return "SIGILL";
    return feature->run() ? "ok" : "WRONG";
}

int cpu_exerciser_main(unsigned wanted, int heartbeat_fd)
{
    struct sigaction illegal = {.sa_handler = on_illegal};
    sigaction(SIGILL, &illegal, NULL);
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGILL);
    sigprocmask(SIG_UNBLOCK, &only, NULL);
    const unsigned present = read_cpuid();
    for (uint64_t sequence = 0;; sequence++) {
        char line[200];
        int length = 0;
        for (size_t i = 0; i < FEATURES; i++)
            if (wanted >> i & 1)
                length += snprintf(line + length, sizeof line - (size_t)length, " %s=%s", features[i].name,
                                   present >> i & 1 ? exercise(&features[i]) : "absent");
        write_line(heartbeat_fd, "CPU %" PRIu64 "%s\n", sequence, line);
        usleep(PERIOD_US);
    }
}
