/*
 * From the initial file system in memory to the root on the disk, where the kernel's command line has vpx.root=DEVICE:
 *
 *      mount the device (ext4, read and write) -> move /dev, /proc, /sys into it -> make it the root -> run its init
 *
 * Documentation/filesystems/ramfs-rootfs-initramfs.rst in the kernel's source says why it is a move and a chroot and
 * not pivot_root.
 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NEW_ROOT "/new-root"
#define BOOT_COUNT "/var/boots"
#define DEVICE_WAIT_MS 5000
#define DEVICE_LOOK_MS 10

/* A driver may find its device a moment after it was loaded; devtmpfs then makes the node without any event for us. */
static bool wait_for_device(const char *device)
{
    const struct timespec pause = {.tv_nsec = DEVICE_LOOK_MS * 1000 * 1000};
    for (int waited_ms = 0; access(device, F_OK) < 0; waited_ms += DEVICE_LOOK_MS) {
        if (waited_ms >= DEVICE_WAIT_MS)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

static bool move_into(const char *folder)
{
    char target[64];
    snprintf(target, sizeof target, NEW_ROOT "%s", folder);
    return mount(folder, target, NULL, MS_MOVE, NULL) == 0;
}

void switch_root(const char *device, int console_fd)
{
    const char *step = "wait for";
    mkdir(NEW_ROOT, 0755);
    if (!wait_for_device(device))
        goto failed;
    step = "mount";
    if (mount(device, NEW_ROOT, "ext4", MS_NOATIME, NULL) < 0)
        goto failed;
    step = "move to";
    if (!move_into("/dev") || !move_into("/proc") || !move_into("/sys") || chdir(NEW_ROOT) < 0 ||
        mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        goto failed;
    step = "run init of";
    execl("/sbin/init", "init", ROOT_MOUNTED, (char *)NULL);
failed:
    write_line(console_fd, "GUEST FAILED to %s %s: %s\n", step, device, strerror(errno));
}

void count_boot(const char *device, int console_fd)
{
    char text[24] = "";
    int fd = open(BOOT_COUNT, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || read(fd, text, sizeof text - 1) < 0) {
        write_line(console_fd, "GUEST FAILED to count the boot: %s\n", strerror(errno));
        return;
    }
    unsigned long long boots = strtoull(text, NULL, 10) + 1;
    int length = snprintf(text, sizeof text, "%llu\n", boots);
    if (pwrite(fd, text, (size_t)length, 0) != length || fsync(fd) < 0)
        write_line(console_fd, "GUEST FAILED to count the boot: %s\n", strerror(errno));
    else
        write_line(console_fd, "GUEST ROOT %s boots=%llu\n", device, boots);
    close(fd);
}

void settle_root(void)
{
    sync();
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
}
