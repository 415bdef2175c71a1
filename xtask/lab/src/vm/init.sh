#!/bin/busybox sh
# First part of a guest's /init; the runs of the boot follow.

/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=1777 tmpfs /tmp
hostname guest
ip link set lo up
for module in /modules/*.ko; do
    insmod "$module"
done
cd /tmp

# Arguments are those of the agent.
check() {
    echo "@check"
    status=0
    /finrace check "$@" 2>&1 || status=$?
    echo "@status $status"
}

live() {
    echo "@live"
    status=0
    FINRACE_ARGS="$*" timeout -s KILL 300 /live 2>&1 || status=$?
    echo "@status $status"
}

# Everything that works here, with what it costs the verifier.
survey() {
    echo "@survey"
    /finrace check --json 2>/dev/null
}

echo "@boot $(uname -r)"
