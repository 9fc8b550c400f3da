/*
 * /init of the guest: process 1. It does in one small program what a chain of scripts would do more slowly:
 *
 *      mount /proc /sys /dev -> load the modules that the found devices need -> [vpx.root: go on as the init of the disk]
 *      -> network -> fork the stamper and, where it has a device, the fsync checker
 *      -> wait until the stamper runs -> "GUEST READY" on the console -> keep a shell there, reap children,
 *         power off or reboot when asked (power button, or the busybox commands by signal)
 *
 * Called as fsync-checker it is that program: `fsync-checker DEVICE` checks once what is on a device.
 */
#define _GNU_SOURCE /* pipe2 */
#include "guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODULES_FOLDER "/lib/modules"
#define MODULES_LIST MODULES_FOLDER "/load"
#define INPUT_DEVICES 4
/* More than a guest's memory in MiB ever is, and small enough that no later product overflows. */
#define OPTION_MAX (1ull << 24)

static void say(const char *what, const char *about)
{
    write_line(STDOUT_FILENO, "GUEST %s %s\n", what, about);
}

/* ---- set-up ---- */

static void mount_or_say(const char *type, const char *where)
{
    mkdir(where, 0755);
    /* EBUSY: the kernel has mounted devtmpfs itself. */
    if (mount(type, where, type, MS_NOSUID, NULL) < 0 && errno != EBUSY)
        say("FAILED mount", where);
}

static void open_console(void)
{
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        return;
    for (int standard = STDIN_FILENO; standard <= STDERR_FILENO; standard++)
        dup2(fd, standard);
    if (fd > STDERR_FILENO)
        close(fd);
}

/* Reads a whole small file as text; "" where it can't be read. */
static void read_text(const char *path, char *text, size_t size)
{
    ssize_t length = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        length = read(fd, text, size - 1);
        close(fd);
    }
    text[length < 0 ? 0 : length] = '\0';
}

/* Whether a device whose file `attribute` reads `value` hangs on the bus. */
static bool device_found(const char *bus, const char *attribute, const char *value)
{
    char path[512], text[64];
    snprintf(path, sizeof path, "/sys/bus/%s/devices", bus);
    DIR *folder = opendir(path);
    bool found = false;
    if (folder == NULL)
        return false;
    for (struct dirent *entry; !found && (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/sys/bus/%s/devices/%s/%s", bus, entry->d_name, attribute);
        read_text(path, text, sizeof text);
        text[strcspn(text, "\n")] = '\0';
        found = strcmp(text, value) == 0;
    }
    closedir(folder);
    return found;
}

static void load_module(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, MODULES_FOLDER "/%s.ko", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        say("NOTE module not loaded:", name);
    if (fd >= 0)
        close(fd);
}

/*
 * The list has one line per driver, written by the image's builder: bus, attribute, value, then the modules in the order
 * of their dependencies. Lines are in the order of discovery: virtio devices appear once virtio_pci is loaded.
 */
static void load_modules(void)
{
    static char list[8192];
    char *line_end, *word_end;
    read_text(MODULES_LIST, list, sizeof list);
    for (char *line = strtok_r(list, "\n", &line_end); line != NULL; line = strtok_r(NULL, "\n", &line_end)) {
        const char *bus = strtok_r(line, " ", &word_end);
        const char *attribute = strtok_r(NULL, " ", &word_end);
        const char *value = strtok_r(NULL, " ", &word_end);
        if (value == NULL || !device_found(bus, attribute, value))
            continue;
        for (char *module; (module = strtok_r(NULL, " ", &word_end)) != NULL;)
            load_module(module);
    }
}

/* ---- options ---- */

static bool parse_number(const char *text, uint64_t least, uint64_t *number)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *text < '0' || *text > '9' || *end != '\0' || value < least || value > OPTION_MAX)
        return false;
    *number = value;
    return true;
}

static bool take_text(char *text, const char *value)
{
    size_t length = strlen(value);
    if (length >= DEVICE_CHARS)
        return false;
    memcpy(text, value, length + 1);
    return true;
}

static bool take_rate(uint64_t *rate, uint64_t most, const char *value)
{
    if (strcmp(value, "max") == 0) {
        *rate = RATE_UNLIMITED;
        return true;
    }
    return parse_number(value, 0, rate) && *rate <= most;
}

static bool take_fsync_option(struct fsync_options *options, const char *name, const char *value)
{
    if (strcmp(name, "device") == 0)
        return take_text(options->device, value);
    if (strcmp(name, "rate") == 0)
        return take_rate(&options->rate, 100000, value);
    if (strcmp(name, "check_mib_s") == 0)
        return parse_number(value, 0, &options->check_mib_s) && options->check_mib_s <= 65536;
    if (strcmp(name, "mode") == 0) {
        options->dsync = strcmp(value, "dsync") == 0;
        return options->dsync || strcmp(value, "fdatasync") == 0;
    }
    return false;
}

static bool take_option(struct guest_options *options, const char *name, const char *value)
{
    if (strcmp(name, "vpx.root") == 0)
        return take_text(options->root, value);
    if (strcmp(name, "cpu.exercise") == 0)
        return parse_cpu_features(value, &options->cpu_features);
    if (strcmp(name, "vpx.ip") == 0)
        return parse_address(value, &options->address);
    if (strcmp(name, "vpx.ping") == 0)
        return inet_pton(AF_INET, value, &options->ping_target) == 1;
    if (strcmp(name, "vpx.ping_ms") == 0)
        return parse_number(value, 1, &options->ping_ms) && options->ping_ms <= 60000;
    if (strncmp(name, "fsync.", 6) == 0)
        return take_fsync_option(&options->fsync, name + 6, value);
    if (strcmp(name, "stamper.mib") == 0)
        return parse_number(value, 1, &options->stamper_mib);
    if (strcmp(name, "stamper.sweep_mib_s") == 0)
        return parse_number(value, 0, &options->sweep_mib_s) && options->sweep_mib_s <= 65536;
    if (strcmp(name, "heartbeat_ms") == 0)
        return parse_number(value, 1, &options->heartbeat_ms);
    if (strcmp(name, "stamper.rate_mib_s") == 0)
        return take_rate(&options->rate_mib_s, 65536, value);
    if (strcmp(name, "stamper.order") == 0) {
        options->order = strcmp(value, "random") == 0 ? ORDER_RANDOM : ORDER_SEQUENTIAL;
        return options->order == ORDER_RANDOM || strcmp(value, "seq") == 0;
    }
    return true; /* the kernel's own option */
}

static bool read_options(struct guest_options *options)
{
    static char text[4096];
    char *rest;
    bool good = true;
    read_text("/proc/cmdline", text, sizeof text);
    for (char *word = strtok_r(text, " \n", &rest); word != NULL; word = strtok_r(NULL, " \n", &rest)) {
        char *value = strchr(word, '=');
        if (value == NULL)
            continue;
        *value++ = '\0';
        if (!take_option(options, word, value)) {
            write_line(STDOUT_FILENO, "GUEST FAILED bad option %s=%s\n", word, value);
            good = false;
        }
    }
    return good;
}

/* ---- children ---- */

static pid_t start_stamper(const struct guest_options *options, int *ready_fd)
{
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        close(ready[0]);
        _exit(stamper_main(options, ready[1]));
    }
    close(ready[1]);
    *ready_fd = ready[0];
    return pid;
}

static void start_fsync_checker(const struct fsync_options *options)
{
    if (options->device[0] == '\0' || fork() != 0)
        return;
    int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    _exit(fsync_checker_main(options, console, open_heartbeat_port()));
}

static void start_pinger(const struct guest_options *options)
{
    if (options->ping_target.s_addr == 0 || fork() != 0)
        return;
    int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    _exit(ping_main(options->ping_target, options->ping_ms, console, open_heartbeat_port()));
}

static void start_cpu_exerciser(unsigned features)
{
    if (features == 0 || fork() != 0)
        return;
    _exit(cpu_exerciser_main(features, open_heartbeat_port()));
}

static pid_t start_shell(void)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    /* The real terminal rather than /dev/console, which can't be a controlling one: job control and ^C need that. */
    int fd = open("/dev/ttyS0", O_RDWR);
    if (fd < 0)
        _exit(127);
    ioctl(fd, TIOCSCTTY, 0);
    for (int standard = STDIN_FILENO; standard <= STDERR_FILENO; standard++)
        dup2(fd, standard);
    if (fd > STDERR_FILENO)
        close(fd);
    /* The shell's prompt would run into the stamper's lines: it comes only when someone is there. */
    for (char typed = 0; typed != '\n';)
        if (read(STDIN_FILENO, &typed, 1) != 1)
            _exit(0);
    execl("/bin/busybox", "sh", (char *)NULL);
    _exit(127);
}

static _Noreturn void leave(int command)
{
    settle_root();
    reboot(command);
    for (;;)
        pause();
}

static void handle_signal(int number, pid_t stamper, pid_t *shell)
{
    if (number == SIGUSR1 || number == SIGUSR2) /* busybox halt, poweroff */
        leave(RB_POWER_OFF);
    if (number == SIGTERM || number == SIGINT) /* busybox reboot */
        leave(RB_AUTOBOOT);
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid == stamper)
            write_line(STDOUT_FILENO, "GUEST FAILED the stamper ended, wait status %#x\n", status);
        else if (pid == *shell) /* 127: there is no serial port or no shell, so trying again won't help */
            *shell = WIFEXITED(status) && WEXITSTATUS(status) == 127 ? -1 : start_shell();
    }
}

/* The power button is one of the input devices; which one depends on the machine. */
static bool power_pressed(int fd)
{
    struct input_event event;
    return read(fd, &event, sizeof event) == sizeof event && event.type == EV_KEY && event.code == KEY_POWER &&
           event.value == 1;
}

static void serve(int signals, pid_t stamper, pid_t shell)
{
    struct pollfd waits[1 + INPUT_DEVICES] = {{.fd = signals, .events = POLLIN}};
    for (int i = 0; i < INPUT_DEVICES; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        /* -1 where there is none: poll passes over it. */
        waits[1 + i] = (struct pollfd){.fd = open(path, O_RDONLY | O_CLOEXEC), .events = POLLIN};
    }
    for (;;) {
        if (poll(waits, 1 + INPUT_DEVICES, -1) < 0)
            continue;
        struct signalfd_siginfo info;
        if (waits[0].revents & POLLIN && read(signals, &info, sizeof info) == sizeof info)
            handle_signal((int)info.ssi_signo, stamper, &shell);
        for (int i = 1; i <= INPUT_DEVICES; i++)
            if (waits[i].revents & POLLIN && power_pressed(waits[i].fd))
                leave(RB_POWER_OFF);
    }
}

/* `fsync-checker DEVICE`, from the guest's shell. */
static int check_device(int count, char **words)
{
    struct fsync_options options = {.once = true};
    if (count != 2 || !take_text(options.device, words[1])) {
        write_line(STDERR_FILENO, "usage: fsync-checker DEVICE\n");
        return 2;
    }
    return fsync_checker_main(&options, STDOUT_FILENO, -1);
}

/* Mounts and loads what the first init needs. The second one, on the disk, finds all of it done. */
static void set_up(void)
{
    mount_or_say("devtmpfs", "/dev");
    open_console();
    mount_or_say("proc", "/proc");
    mount_or_say("sysfs", "/sys");
    reboot(RB_DISABLE_CAD);
    load_modules();
}

int main(int count, char **words)
{
    struct guest_options options = {
        .stamper_mib = 64, .rate_mib_s = 20, .sweep_mib_s = 4, .heartbeat_ms = 10, .order = ORDER_SEQUENTIAL,
        .fsync = {.rate = 50, .check_mib_s = 4}, .ping_ms = 10};
    if (count > 0 && strstr(words[0], "fsync-checker") != NULL)
        return check_device(count, words);
    bool root_mounted = count > 1 && strcmp(words[1], ROOT_MOUNTED) == 0;
    if (!root_mounted)
        set_up();
    setenv("PATH", "/bin:/sbin", 1);
    bool good = read_options(&options);
    if (good && root_mounted)
        count_boot(options.root, STDOUT_FILENO);
    else if (good && options.root[0] != '\0') {
        switch_root(options.root, STDOUT_FILENO);
        good = false; /* without its root it does none of its work, and keeps a shell for whoever looks into it */
    }
    sigset_t handled;
    sigfillset(&handled);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    int signals = signalfd(-1, &handled, SFD_CLOEXEC);
    pid_t stamper = -1;
    char ready = 0;
    int ready_fd = -1;
    if (good) {
        start_network(&options.address, STDOUT_FILENO);
        start_fsync_checker(&options.fsync);
        start_pinger(&options);
        start_cpu_exerciser(options.cpu_features);
    }
    if (good && (stamper = start_stamper(&options, &ready_fd)) > 0) {
        if (read(ready_fd, &ready, 1) == 1)
            write_line(STDOUT_FILENO, "GUEST READY\nPress Enter for a shell.\n");
        close(ready_fd);
    }
    serve(signals, stamper, start_shell());
}
