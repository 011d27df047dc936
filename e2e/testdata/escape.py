"""Tries what must not work in a pod, as root in it. Prints a line for each
thing that worked, and one that says how many were tried."""
import ctypes
import errno
import os
import select
import socket
import struct
import sys

# Addresses that must not answer, as ADDRESS:PORT, and after "--" ones that do.
split = sys.argv.index("--")
forbidden, allowed = sys.argv[1:split], sys.argv[split + 1:]
libc = ctypes.CDLL(None, use_errno=True)
tried = 0


def refused(what, action, *errors):
    """action must fail with one of the errors."""
    global tried
    tried += 1
    try:
        result = action()
    except OSError as e:
        if errors and e.errno not in errors:
            print(f"{what}: failed with {errno.errorcode[e.errno]}, not {[errno.errorcode[x] for x in errors]}")
        return
    print(f"{what}: worked: {result!r}")


def call(name, *args):
    def run():
        if (result := getattr(libc, name)(*args)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
    return run


def write(path, text):
    def run():
        with open(path, "w") as f:
            f.write(text)
    return run


def read(path):
    def run():
        with open(path, "rb") as f:
            return f.read(100) or None
    return run


def absent(what, found):
    global tried
    tried += 1
    if found:
        print(f"{what}: {found!r}")


# Processes: only the pod's own are there, and no other can be signalled.
own = [int(p) for p in os.listdir("/proc") if p.isdigit()]
commands = []
for pid in own:
    try:
        with open(f"/proc/{pid}/comm") as f:
            commands.append(f.read().strip())
    except FileNotFoundError:
        pass
absent("processes of the host", [c for c in commands if c.startswith("podd") or c in ("etcd", "systemd", "go")])
absent("more processes than a pod has", len(own) > 12 and commands)
for pid in range(2, 70000):
    if pid not in own:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        if not os.path.exists(f"/proc/{pid}") and os.path.exists("/proc/self"):
            # A thread of the pod has no directory that is listed.
            print(f"process {pid}, which is not in the pod, can be signalled")
tried += 1

# Mounts and namespaces.
for kind in "tmpfs", "proc", "sysfs", "overlay", "cgroup2":
    refused(f"mounting {kind}", call("mount", b"none", b"/mnt", kind.encode(), 0, None), errno.EPERM, errno.EACCES)
refused("binding / to /mnt", call("mount", b"/", b"/mnt", None, 4096, None), errno.EPERM, errno.EACCES)
refused("remounting /sys", call("mount", b"none", b"/sys", None, 32, None), errno.EPERM, errno.EACCES)
refused("unmounting /proc/kcore", call("umount2", b"/proc/kcore", 2), errno.EPERM)
refused("unmounting /proc", call("umount2", b"/proc", 2), errno.EPERM)
for name, flag in {"mount": 0x20000, "user": 0x10000000, "network": 0x40000000, "pid": 0x20000000, "cgroup": 0x2000000}.items():
    refused(f"a {name} namespace of its own", call("unshare", flag), errno.EPERM)
refused("joining init's mount namespace", lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)(), errno.EPERM)

# The kernel.
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger",
             "/sys/kernel/uevent_helper", "/sys/power/state", "/proc/irq/default_smp_affinity"):
    refused(f"writing {path}", write(path, "1"))
refused("mapping all memory", lambda: os.open("/dev/mem", os.O_RDWR))
absent("kernel memory", os.path.exists("/proc/kcore") and os.stat("/proc/kcore").st_size and read("/proc/kcore")())
absent("timers of all processes", os.path.exists("/proc/timer_list") and read("/proc/timer_list")())
refused("loading a module", call("init_module", b"", 0, b""), errno.EPERM, errno.ENOSYS)
refused("rebooting", call("reboot", 0x1234567), errno.EPERM, errno.EINVAL)
refused("setting the clock", call("settimeofday", struct.pack("qq", 0, 0), None), errno.EPERM)
refused("the kernel's log", call("klogctl", 3, ctypes.create_string_buffer(100), 100), errno.EPERM)
refused("renaming the host", lambda: socket.sethostname("pwned"), errno.EPERM)

# Devices: a node can be made but not opened.
for name, kind, major, minor in ("disk", 0o060600, 8, 0), ("disk2", 0o060600, 259, 0), ("mem", 0o020600, 1, 1), ("kmsg", 0o020600, 1, 11), ("fuse", 0o020600, 10, 229):
    def device():
        path = f"/tmp/{name}"
        try:
            os.mknod(path, kind, os.makedev(major, minor))
        except FileExistsError:
            pass
        try:
            return os.open(path, os.O_RDWR)
        finally:
            os.unlink(path)
    refused(f"opening device {major}:{minor}", device, errno.EPERM, errno.EACCES, errno.ENXIO, errno.ENODEV)

# The host's and the other pods' files.
for path in "/var/lib/podd", "/var/lib/podd-lab", "/run/podd", "/run/podd-lab", "/root", "/home":
    absent(f"content of {path}", os.path.isdir(path) and [e for e in os.listdir(path) if not e.startswith(".")])
with open("/etc/shadow") as f:
    absent("passwords", [line for line in f if len(line.split(":")[1]) > 3])

# The network: it can't be configured, and shows nobody else's devices.
absent("network devices", sorted(n for _, n in socket.if_nameindex() if n not in ("lo", "eth0")))
rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
for what, kind, body in (
    # RTM_NEWADDR of 100.64.9.9/32 to index 2, RTM_DELLINK of index 2, RTM_NEWROUTE of the default route to lo
    ("adding an address", 20, struct.pack("BBBBi", socket.AF_INET, 32, 0, 0, 2) + struct.pack("HH4s", 8, 2, socket.inet_aton("100.64.9.9"))),
    ("deleting the NIC", 17, struct.pack("BxHiII", 0, 0, 2, 0, 0)),
    ("changing routes", 24, struct.pack("BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("HHi", 8, 4, 1)),
):
    rtnetlink.send(struct.pack("IHHII", 16 + len(body), kind, 5, 1, 0) + body)
    reply = rtnetlink.recv(4096)
    code = -struct.unpack_from("i", reply, 16)[0]
    tried += 1
    if code != errno.EPERM:
        print(f"{what}: {errno.errorcode.get(code, 'worked')}")

# Who is not to be reached does not answer; the others prove that it is not
# just the network.
waiting = {}
for target in forbidden + allowed:
    host, port = target.rsplit(":", 1)
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((host, int(port)))
    waiting[s] = target
reached = set()
poll = select.poll()
for s in waiting:
    poll.register(s.fileno(), select.POLLOUT)
by_fd = {s.fileno(): s for s in waiting}
while not set(allowed) <= reached:
    events = poll.poll(30_000)
    if not events:
        print(f"not reached within 30 s: {set(allowed) - reached}")
        break
    for fd, _ in events:
        poll.unregister(fd)
        if by_fd[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            reached.add(waiting[by_fd[fd]])
# Whatever would have answered is as near as those that did; retransmissions
# have had their chance after this.
for fd, _ in poll.poll(1500):
    if by_fd[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
        reached.add(waiting[by_fd[fd]])
for target in sorted(reached & set(forbidden)):
    print(f"{target} was reached")
tried += len(forbidden)
print(f"tried {tried} ways")
