/*
 * What the parts of the guest's program share: init.c (PID 1), stamper.c, fsync_checker.c, network.c and
 * root_file_system.c. They are linked into the one static program that is /init of the guest: forking without exec
 * saves the start of a second program, which is slow where the processor is emulated.
 */
#ifndef GUEST_H
#define GUEST_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

enum stamp_order { ORDER_SEQUENTIAL, ORDER_RANDOM };

#define RATE_UNLIMITED UINT64_MAX
#define DEVICE_CHARS 64
/* The argument with which the init on the disk is told that it is the second one. */
#define ROOT_MOUNTED "root-mounted"

struct fsync_options {
    char device[DEVICE_CHARS]; /* "": there is no checker */
    uint64_t rate;             /* records per second; 0: only checks; RATE_UNLIMITED: no pauses */
    uint64_t check_mib_s;
    bool dsync; /* O_DSYNC instead of fdatasync */
    bool once;  /* check what is there and end */
};

struct guest_address {
    struct in_addr address; /* 0: none */
    struct in_addr mask;
    struct in_addr gateway; /* 0: none */
};

/* Options of the kernel's command line; README.md lists them with their defaults. */
struct guest_options {
    uint64_t stamper_mib;
    uint64_t rate_mib_s; /* 0: never rewrites, only the sweep reads; RATE_UNLIMITED: no pauses */
    uint64_t sweep_mib_s;
    uint64_t heartbeat_ms;
    enum stamp_order order;
    char root[DEVICE_CHARS]; /* "": the initial file system in memory stays the root */
    struct guest_address address;
    struct fsync_options fsync;
    struct in_addr ping_target; /* 0: none is pinged */
    uint64_t ping_ms;
    unsigned cpu_features; /* a bit for each that is to be executed; 0: none is */
};

/*
 * Fills and then stamps memory for ever. Writes one byte to ready_fd, and closes it, when every page
 * carries its first stamp and the heartbeat has begun. Returns only (a positive exit code, after a line
 * "GUEST FAILED ..." on the console) where it cannot start.
 */
int stamper_main(const struct guest_options *options, int ready_fd);

/*
 * Writes records to the device and checks them for ever, or once. Returns an exit code where it can't: a positive one,
 * after a line "GUEST FAILED ..."; with `once` 0 where every record is as it was acknowledged.
 */
int fsync_checker_main(const struct fsync_options *options, int console_fd, int heartbeat_fd);

/* Opens the second serial port in raw mode; -1 where the machine has none. */
int open_heartbeat_port(void);

/* Reads "10.0.0.5/24" or "10.0.0.5/24,10.0.0.1". */
bool parse_address(const char *text, struct guest_address *address);

/* Loopback, and eth0 where there is an address for it. What is missing is told, not fatal. */
void start_network(const struct guest_address *address, int console_fd);

/*
 * Pings the address every interval_ms for ever and tells on the heartbeat port what came back. Returns only where it
 * can't, with a positive exit code, after a line "GUEST FAILED ...".
 */
int ping_main(struct in_addr target, uint64_t interval_ms, int console_fd, int heartbeat_fd);

/* Reads "avx2,sse4.2": features by QEMU's names. False where one isn't known. */
bool parse_cpu_features(const char *text, unsigned *wanted);

/* Executes instructions of these features for ever and tells on the heartbeat port how they went. */
int cpu_exerciser_main(unsigned wanted, int heartbeat_fd);

/* Makes the device the root and runs its /sbin/init. Returns only where it can't, after a line "GUEST FAILED ...". */
void switch_root(const char *device, int console_fd);

/* Counts this boot in a file of the root, durably: "GUEST ROOT /dev/vda2 boots=3". */
void count_boot(const char *device, int console_fd);

/* Writes everything out and makes the root read-only, so that it is clean at the next boot. */
void settle_root(void);

/* Writes one whole line to fd. A full non-blocking terminal loses the line rather than stop the caller. */
void write_line(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
