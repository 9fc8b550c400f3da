/*
 * The pinger: the guest's own witness that the network stayed. It sends an ICMP echo request every few milliseconds
 * and counts what comes back, and what doesn't.
 *
 *      PING sent=1200 received=1199 lost=1 duplicates=0 gap_ms=14        on the heartbeat port, every half second
 *
 * `sent` counts from the first answer on: until then the other station isn't there yet, and nothing is lost. Lost is
 * what has no answer after a second; an answer later than that is still `received`. `gap_ms` is the longest time without
 * any answer, by this guest's clock, which stands still while the guest does.
 */
#include "guest.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)
#define REPORT_NS (NS_PER_S / 2)
#define LOST_NS NS_PER_S
/* Pings that may be without an answer at once: a power of two, above a second's worth at the shortest interval. */
#define WINDOW 4096u
#define IDENTIFIER 0x7670 /* "vp" */

struct packet {
    struct icmphdr header;
    uint64_t number;
    uint64_t zeros[5]; /* 56 bytes of ICMP in all, as ping(8) sends */
};

struct slot {
    uint64_t number;
    uint64_t sent_ns; /* 0: free, or judged already */
    bool answered;
};

struct pinger {
    struct slot window[WINDOW];
    uint64_t next_number;
    uint64_t judge_number; /* the oldest that isn't judged */
    uint64_t first_counted;
    uint64_t received, lost, duplicates;
    uint64_t last_answer_ns, gap_ns;
    bool counting;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* RFC 1071 over the whole packet, which has an even number of bytes. */
static uint16_t checksum(const void *data, size_t size)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < size; i += 2) {
        uint16_t word;
        memcpy(&word, (const char *)data + i, 2);
        sum += word;
    }
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~(sum + (sum >> 16));
}

/* Nothing is told of errors: a request that can't be sent is one without an answer. */
static void send_request(int fd, struct in_addr target, struct pinger *pinger, uint64_t this_ns)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = target};
    struct packet packet = {.header = {.type = ICMP_ECHO}, .number = pinger->next_number};
    packet.header.un.echo.id = htons(IDENTIFIER);
    packet.header.un.echo.sequence = htons((uint16_t)pinger->next_number);
    packet.header.checksum = checksum(&packet, sizeof packet);
    pinger->window[pinger->next_number % WINDOW] =
        (struct slot){.number = pinger->next_number, .sent_ns = this_ns, .answered = false};
    pinger->next_number++;
    sendto(fd, &packet, sizeof packet, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to);
}

static void take_answer(struct pinger *pinger, uint64_t number, uint64_t this_ns)
{
    struct slot *slot = &pinger->window[number % WINDOW];
    if (number >= pinger->next_number || slot->number != number)
        return; /* older than the window, or none of ours */
    if (!pinger->counting) {
        pinger->counting = true;
        pinger->first_counted = pinger->judge_number = number;
    } else if (number < pinger->first_counted) {
        return;
    } else if (this_ns - pinger->last_answer_ns > pinger->gap_ns) {
        pinger->gap_ns = this_ns - pinger->last_answer_ns;
    }
    pinger->last_answer_ns = this_ns;
    if (slot->answered) {
        pinger->duplicates++;
        return;
    }
    slot->answered = true;
    pinger->received++;
}

static void read_answers(int fd, struct in_addr target, struct pinger *pinger)
{
    char buffer[2048];
    for (ssize_t size; (size = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0;) {
        struct iphdr ip;
        struct packet packet;
        if ((size_t)size < sizeof ip)
            continue;
        memcpy(&ip, buffer, sizeof ip);
        if (ip.saddr != target.s_addr || (size_t)size < ip.ihl * 4u + sizeof packet)
            continue;
        memcpy(&packet, buffer + ip.ihl * 4u, sizeof packet);
        if (packet.header.type == ICMP_ECHOREPLY && packet.header.un.echo.id == htons(IDENTIFIER))
            take_answer(pinger, packet.number, now_ns());
    }
}

static void judge(struct pinger *pinger, uint64_t this_ns)
{
    for (; pinger->counting && pinger->judge_number < pinger->next_number; pinger->judge_number++) {
        const struct slot *slot = &pinger->window[pinger->judge_number % WINDOW];
        if (!slot->answered && this_ns - slot->sent_ns < LOST_NS)
            return;
        pinger->lost += !slot->answered;
    }
}

static void wait_until(int fd, uint64_t when_ns)
{
    struct pollfd answers = {.fd = fd, .events = POLLIN};
    uint64_t this_ns = now_ns();
    uint64_t left_ns = when_ns > this_ns ? when_ns - this_ns : 0;
    struct timespec left = {.tv_sec = (time_t)(left_ns / NS_PER_S), .tv_nsec = (long)(left_ns % NS_PER_S)};
    ppoll(&answers, 1, &left, NULL);
}

int ping_main(struct in_addr target, uint64_t interval_ms, int console_fd, int heartbeat_fd)
{
    static struct pinger pinger;
    int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
    if (fd < 0) {
        write_line(console_fd, "GUEST FAILED pinger: %s\n", strerror(errno));
        return 1;
    }
    /* Below the heartbeat, above all else: what is measured is the network, not this guest's load. */
    struct sched_param priority = {.sched_priority = 40};
    sched_setscheduler(0, SCHED_FIFO, &priority);
    uint64_t next_ns = now_ns(), report_ns = next_ns + REPORT_NS;
    for (;;) {
        uint64_t this_ns = now_ns();
        if (this_ns >= next_ns) {
            send_request(fd, target, &pinger, this_ns);
            next_ns += interval_ms * NS_PER_MS;
            if (next_ns < this_ns) /* no burst after a pause: it would be lost in queues that nobody asked for */
                next_ns = this_ns;
        }
        if (this_ns >= report_ns && pinger.counting) {
            judge(&pinger, this_ns);
            report_ns = this_ns + REPORT_NS;
            write_line(heartbeat_fd,
                       "PING sent=%" PRIu64 " received=%" PRIu64 " lost=%" PRIu64 " duplicates=%" PRIu64
                       " gap_ms=%" PRIu64 "\n",
                       pinger.next_number - pinger.first_counted, pinger.received, pinger.lost, pinger.duplicates,
                       pinger.gap_ns / NS_PER_MS);
        }
        wait_until(fd, next_ns);
        read_answers(fd, target, &pinger);
    }
}
