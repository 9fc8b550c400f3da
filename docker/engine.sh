#!/bin/sh
# A docker engine for machines without a service manager (CI jobs, containers, live systems).
#
#   docker/engine.sh start   no-op if an engine answers; else runs dockerd and waits until it answers
#   docker/engine.sh stop    ends the engine that `start` ran, and no other
#   docker/engine.sh status  says which of the two it is; exit 0 if an engine answers
#
# The pid file is the claim "we started this one": an engine that was there before has none and is never touched.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
state=$root/out/docker
pid_file=$state/dockerd.pid
log=$state/dockerd.log
start_deadline_s=${VPX_ENGINE_START_S:-60}
stop_deadline_s=${VPX_ENGINE_STOP_S:-30}

answers() { timeout 5 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# The pid from our pid file, if that process is still our dockerd: pids are reused, so its command line must name the file.
our_pid() {
    [ -s "$pid_file" ] || return 1
    pid=$(cat "$pid_file")
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "--pidfile $pid_file" || return 1
    echo "$pid"
}

start() {
    if answers; then
        echo "engine: $(docker version --format '{{.Server.Version}}') answers already"
        return 0
    fi
    command -v dockerd >/dev/null || { echo "engine: no docker engine answers and dockerd is not installed" >&2; exit 1; }
    [ "$(id -u)" -eq 0 ] || { echo "engine: no docker engine answers; start yours, or run this as root" >&2; exit 1; }
    mkdir -p "$state"
    our_pid >/dev/null || rm -f "$pid_file"
    # Its own session: it must outlive this script and not hear the terminal's signals.
    setsid dockerd --pidfile "$pid_file" >"$log" 2>&1 </dev/null &
    child=$!
    deadline=$(($(date +%s) + start_deadline_s))
    until answers; do
        if ! kill -0 "$child" 2>/dev/null && ! our_pid >/dev/null; then
            echo "engine: dockerd ended at once; the end of $log:" >&2
            tail -n 20 "$log" >&2
            exit 1
        fi
        if [ "$(date +%s)" -ge "$deadline" ]; then
            echo "engine: dockerd does not answer after $start_deadline_s s; see $log" >&2
            stop
            exit 1
        fi
        sleep 0.2
    done
    echo "engine: started $(docker version --format '{{.Server.Version}}'), pid $(cat "$pid_file"), log $log"
}

stop() {
    pid=$(our_pid) || { echo "engine: none of ours is running"; return 0; }
    kill "$pid"
    deadline=$(($(date +%s) + stop_deadline_s))
    while kill -0 "$pid" 2>/dev/null; do
        # A container that ignores SIGTERM can hold dockerd; containers are disposable here, so end it hard in the end.
        [ "$(date +%s)" -lt "$deadline" ] || kill -KILL "$pid" 2>/dev/null || true
        sleep 0.2
    done
    rm -f "$pid_file"
    echo "engine: stopped $pid"
}

status() {
    if pid=$(our_pid); then echo "engine: ours, pid $pid"; else echo "engine: not ours"; fi
    answers
}

case ${1:-} in
    start | stop | status) "$1" ;;
    *) echo "usage: $0 start|stop|status" >&2; exit 2 ;;
esac
