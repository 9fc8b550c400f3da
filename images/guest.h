/*
 * What init.c (PID 1) and stamper.c share. Both are linked into the one static program that is
 * /init of the guest: forking without exec saves the start of a second program, which is slow
 * where the processor is emulated.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdint.h>

enum stamp_order { ORDER_SEQUENTIAL, ORDER_RANDOM };

#define RATE_UNLIMITED UINT64_MAX

/* Options of the kernel's command line; README.md lists them with their defaults. */
struct guest_options {
    uint64_t stamper_mib;
    uint64_t rate_mib_s; /* 0: never rewrites, only the sweep reads; RATE_UNLIMITED: no pauses */
    uint64_t sweep_mib_s;
    uint64_t heartbeat_ms;
    enum stamp_order order;
};

/*
 * Fills and then stamps memory for ever. Writes one byte to ready_fd, and closes it, when every page
 * carries its first stamp and the heartbeat has begun. Returns only (a positive exit code, after a line
 * "GUEST FAILED ..." on the console) where it cannot start.
 */
int stamper_main(const struct guest_options *options, int ready_fd);

/* Writes one whole line to fd. A full non-blocking terminal loses the line rather than stop the caller. */
void write_line(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
