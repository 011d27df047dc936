"""Tries what must not work in a pod, as root in it. Prints "SECTION: ..." for each
thing that worked, and for each section "SECTION tried N"."""
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import sys

# Addresses that must not answer, as ADDRESS:PORT, and after "--" ones that do.
split = sys.argv.index("--")
forbidden, allowed = sys.argv[1:split], sys.argv[split + 1:]
libc = ctypes.CDLL(None, use_errno=True)
section, tried = "", 0


def begin(name):
    """Ends a section and begins another."""
    global section, tried
    if section:
        print(f"{section} tried {tried}")
    section, tried = name, 0


def report(text):
    print(f"{section}: {text}")


def refused(what, action, *errors):
    """action must fail with one of the errors."""
    global tried
    tried += 1
    try:
        result = action()
    except OSError as e:
        if errors and e.errno not in errors:
            report(f"{what}: failed with {errno.errorcode[e.errno]}, not {[errno.errorcode[x] for x in errors]}")
        return
    report(f"{what}: worked: {result!r}")


def call(name, *args):
    def run():
        if (result := getattr(libc, name)(*args)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
    return run


def syscall(number, *args):
    """A system call that the C library may not have."""
    return call("syscall", ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])


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
        report(f"{what}: {found!r}")


begin("see or signal others")
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
            report(f"process {pid}, which is not in the pod, can be signalled")
tried += 1

refused("tracing a process that is not there", call("ptrace", 16, 1 << 21, None, None), errno.ESRCH, errno.EPERM)
refused("a descriptor of a process that is not there", syscall(434, 1 << 21, 0), errno.EINVAL, errno.ESRCH)

begin("mount")
for kind in "tmpfs", "proc", "sysfs", "overlay", "cgroup2":
    refused(f"mounting {kind}", call("mount", b"none", b"/mnt", kind.encode(), 0, None), errno.EPERM, errno.EACCES)
refused("binding / to /mnt", call("mount", b"/", b"/mnt", None, 4096, None), errno.EPERM, errno.EACCES)
refused("remounting /sys", call("mount", b"none", b"/sys", None, 32, None), errno.EPERM, errno.EACCES)
refused("unmounting /proc/kcore", call("umount2", b"/proc/kcore", 2), errno.EPERM)
refused("unmounting /proc", call("umount2", b"/proc", 2), errno.EPERM)
refused("opening a file system", syscall(430, b"tmpfs", 0), errno.EPERM)
refused("opening a tree to move", syscall(428, -100, b"/", 1), errno.EPERM)
refused("moving a mount", syscall(429, -100, b"/", -100, b"/mnt", 0), errno.EPERM)
refused("changing a mount", syscall(442, -100, b"/", 0, None, 0), errno.EPERM)
refused("another root", call("pivot_root", b"/", b"/mnt"), errno.EPERM)
begin("enter namespaces")
for name, flag in {"mount": 0x20000, "user": 0x10000000, "network": 0x40000000, "pid": 0x20000000, "cgroup": 0x2000000}.items():
    refused(f"a {name} namespace of its own", call("unshare", flag), errno.EPERM)
    refused(f"a child in a {name} namespace of its own", syscall(56, flag | 17, 0, 0, 0, 0), errno.EPERM)
refused("clone3", syscall(435, ctypes.create_string_buffer(88), 88), errno.ENOSYS)
refused("joining init's mount namespace", lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)(), errno.EPERM)

begin("reach the kernel")
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
refused("loading a module from a file", syscall(313, 0, b"", 0), errno.EPERM)
refused("removing a module", syscall(176, b"vxlan", 0), errno.EPERM)
refused("loading another kernel", syscall(246, 0, 0, None, 0), errno.EPERM)
refused("loading another kernel from a file", syscall(320, 0, 0, 0, None, 0), errno.EPERM)
refused("the processor's ports", syscall(172, 3), errno.EPERM, errno.ENOSYS)
refused("swapping to a file", syscall(167, b"/tmp/swap", 0), errno.EPERM)
refused("accounting into a file", syscall(163, b"/tmp/acct"), errno.EPERM)
refused("a file by its handle", syscall(304, -100, ctypes.create_string_buffer(16), 0), errno.EPERM)
refused("keys of the kernel", syscall(250, 0, -3, 0, 0, 0), errno.EPERM, errno.ENOSYS)
refused("counters of the processor", syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0), errno.EPERM, errno.EACCES)
refused("page faults", syscall(323, 0), errno.EPERM)
absent("addresses in the kernel", [line for line in open("/proc/kallsyms").readlines()[:100] if int(line.split()[0], 16)] if os.path.exists("/proc/kallsyms") else [])
# A control group could start a program on the host when it gets empty.
refused("mounting control groups", call("mount", b"none", b"/mnt", b"cgroup", 0, b"memory"), errno.EPERM, errno.EACCES)
for directory, _, names in os.walk("/sys/fs/cgroup"):
    for name in set(names) & {"release_agent", "notify_on_release", "cgroup.procs", "memory.max", "memory.limit_in_bytes", "pids.max"}:
        refused(f"writing {name} of {directory}", write(f"{directory}/{name}", "1"), errno.EROFS, errno.EACCES, errno.EPERM)

begin("load BPF")
refused("a BPF map", syscall(321, 0, ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1), 128), 128), errno.EPERM)
refused("a BPF program", syscall(321, 5, ctypes.create_string_buffer(128), 128), errno.EPERM)
begin("use io_uring")
refused("a ring", syscall(425, 8, ctypes.create_string_buffer(256)), errno.ENOSYS)
refused("entering a ring", syscall(426, 0, 0, 0, 0, None, 0), errno.ENOSYS)
refused("registering with a ring", syscall(427, 0, 0, None, 0), errno.ENOSYS)

begin("change limits")
refused("a limit above its own", call("setpriority", 0, 0, -5), errno.EPERM, errno.EACCES)
refused("running in real time", call("sched_setscheduler", 0, 1, ctypes.create_string_buffer(struct.pack("i", 50), 4)), errno.EPERM)
refused("escaping the end for lack of memory", write("/proc/self/oom_score_adj", "-1000"), errno.EACCES, errno.EPERM)
refused("renaming the host", lambda: socket.sethostname("pwned"), errno.EPERM)

begin("use devices")
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

begin("read the host's files")
# The host's and the other pods' files.
for path in "/var/lib/podd", "/var/lib/podd-lab", "/run/podd", "/run/podd-lab", "/root", "/home":
    absent(f"content of {path}", os.path.isdir(path) and [e for e in os.listdir(path) if not e.startswith(".")])
with open("/etc/shadow") as f:
    absent("passwords", [line for line in f if len(line.split(":")[1]) > 3])

for path in "/proc/self/environ", "/proc/1/environ", "/proc/self/mountinfo", "/proc/1/cmdline":
    with open(path, errors="replace") as f:
        absent(f"tokens in {path}", "podd1." in (text := f.read()) or "PRIVATE KEY" in text or "trust/" in text)

begin("sniff")
for what, family, kind, protocol in (
    ("a packet socket", socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)),
    ("a packet socket for IP", socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800)),
    ("a raw socket", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    ("a raw socket for TCP", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
    ("a raw socket for any packet", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
    ("a raw socket for IPv6", socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    ("a socket to the hypervisor", socket.AF_VSOCK, socket.SOCK_STREAM, 0),
):
    refused(what, lambda: socket.socket(family, kind, protocol), errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT)

begin("change the network")
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused("an address of others", lambda: datagrams.setsockopt(socket.IPPROTO_IP, 19, 1), errno.EPERM)  # IP_TRANSPARENT
refused("a mark on packets", lambda: datagrams.setsockopt(socket.SOL_SOCKET, 36, 1), errno.EPERM)  # SO_MARK
refused("an entry for ARP", lambda: fcntl.ioctl(datagrams, 0x8955, struct.pack("H2x4s8xH6s6xi16x16s", socket.AF_INET, socket.inet_aton("169.254.1.1"), 1, b"\2" * 6, 4, b"eth0")), errno.EPERM)  # SIOCSARP
refused("listening to everything", lambda: fcntl.ioctl(datagrams, 0x8914, struct.pack("16sH14x", b"eth0", 0x1100 | 0x43)), errno.EPERM)  # SIOCSIFFLAGS: promiscuous
refused("another hardware address", lambda: fcntl.ioctl(datagrams, 0x8924, struct.pack("16sH6s8x", b"eth0", 1, b"\2" * 6)), errno.EPERM)  # SIOCSIFHWADDR
# The network: it can't be configured, and shows nobody else's devices.
absent("network devices", sorted(n for _, n in socket.if_nameindex() if n not in ("lo", "eth0")))
rtnetlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
for what, kind, body in (
    # RTM_NEWNEIGH of 100.64.9.9,
    # RTM_NEWADDR of 100.64.9.9/32 to index 2, RTM_DELLINK of index 2, RTM_NEWROUTE of the default route to lo
    ("adding a neighbour", 28, struct.pack("BxxxiHBB", socket.AF_INET, 2, 0x80, 0, 0) + struct.pack("HH4s", 8, 1, socket.inet_aton("100.64.9.9")) + struct.pack("HH6sxx", 10, 2, b"\2" * 6)),
    ("adding an address", 20, struct.pack("BBBBi", socket.AF_INET, 32, 0, 0, 2) + struct.pack("HH4s", 8, 2, socket.inet_aton("100.64.9.9"))),
    ("deleting the NIC", 17, struct.pack("BxHiII", 0, 0, 2, 0, 0)),
    ("changing routes", 24, struct.pack("BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("HHi", 8, 4, 1)),
):
    rtnetlink.send(struct.pack("IHHII", 16 + len(body), kind, 5, 1, 0) + body)
    reply = rtnetlink.recv(4096)
    code = -struct.unpack_from("i", reply, 16)[0]
    tried += 1
    if code != errno.EPERM:
        report(f"{what}: {errno.errorcode.get(code, 'worked')}")

begin("reach hosts and directory")
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
        report(f"not reached within 30 s: {set(allowed) - reached}")
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
    report(f"{target} was reached")
tried += len(forbidden)
begin("")
