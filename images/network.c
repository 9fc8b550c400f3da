/*
 * The guest's network: the loopback and, where the kernel's command line has vpx.ip=ADDRESS/PREFIX[,GATEWAY], the
 * first NIC with that address. The kernel itself answers ping.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST_NIC "eth0"

static bool set_address(int fd, unsigned long request, struct ifreq *nic, struct in_addr address)
{
    struct sockaddr_in value = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(&nic->ifr_addr, &value, sizeof value);
    return ioctl(fd, request, nic) == 0;
}

static bool bring_up(int fd, struct ifreq *nic)
{
    if (ioctl(fd, SIOCGIFFLAGS, nic) < 0)
        return false;
    nic->ifr_flags = (short)(nic->ifr_flags | IFF_UP);
    return ioctl(fd, SIOCSIFFLAGS, nic) == 0;
}

static bool route_by(int fd, struct in_addr gateway)
{
    struct sockaddr_in any = {.sin_family = AF_INET}, by = {.sin_family = AF_INET, .sin_addr = gateway};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    memcpy(&route.rt_dst, &any, sizeof any);
    memcpy(&route.rt_genmask, &any, sizeof any);
    memcpy(&route.rt_gateway, &by, sizeof by);
    return ioctl(fd, SIOCADDRT, &route) == 0;
}

bool parse_address(const char *text, struct guest_address *address)
{
    char copy[64];
    if (strlen(text) >= sizeof copy)
        return false;
    strcpy(copy, text);
    char *gateway = strchr(copy, ',');
    if (gateway != NULL)
        *gateway++ = '\0';
    char *prefix = strchr(copy, '/'), *end = NULL;
    if (prefix == NULL)
        return false;
    *prefix++ = '\0';
    unsigned long bits = strtoul(prefix, &end, 10);
    if (*prefix < '0' || *prefix > '9' || *end != '\0' || bits > 32)
        return false;
    address->mask.s_addr = bits == 0 ? 0 : htonl(UINT32_MAX << (32 - bits));
    address->gateway.s_addr = 0;
    return inet_pton(AF_INET, copy, &address->address) == 1 &&
           (gateway == NULL || inet_pton(AF_INET, gateway, &address->gateway) == 1);
}

void start_network(const struct guest_address *address, int console_fd)
{
    struct ifreq loopback = {.ifr_name = "lo"}, nic = {.ifr_name = FIRST_NIC};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        write_line(console_fd, "GUEST NOTE no network: %s\n", strerror(errno));
        return;
    }
    bring_up(fd, &loopback);
    if (address->address.s_addr != 0) {
        bool up = set_address(fd, SIOCSIFADDR, &nic, address->address) &&
                  set_address(fd, SIOCSIFNETMASK, &nic, address->mask) && bring_up(fd, &nic) &&
                  (address->gateway.s_addr == 0 || route_by(fd, address->gateway));
        if (up)
            write_line(console_fd, "GUEST NETWORK " FIRST_NIC " %s\n", inet_ntoa(address->address));
        else
            write_line(console_fd, "GUEST NOTE " FIRST_NIC " not brought up: %s\n", strerror(errno));
    }
    close(fd);
}
