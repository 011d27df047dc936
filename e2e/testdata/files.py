"""Makes files of every kind below the directories given, notes what they are
like, and serves lines: "check" is answered with "ok" or with what differs from
the note, which is only in this process's memory."""
import hashlib
import mmap
import os
import socket
import stat
import sys
import threading
import time

port, tops = int(sys.argv[1]), sys.argv[2:]


def write(path, data, mode=0o644):
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)


def populate(top):
    """A directory with every kind of file. Returns what is held open."""
    os.makedirs(top + "/deep/er")
    write(top + "/plain", b"plain\n", 0o640)
    os.chown(top + "/plain", 1234, 2345)
    write(top + "/program", b"#!/bin/sh\n", 0o755)
    os.chmod(top + "/program", 0o6755)
    write(top + "/deep/er/random", os.urandom(300_000))
    write(top + "/empty", b"")
    write(top + "/name with \n and \xff".encode("latin-1").decode("utf-8", "surrogateescape"), b"odd")
    os.link(top + "/plain", top + "/deep/linked")
    os.symlink("/no/where", top + "/dangling")
    os.symlink("plain", top + "/link")
    os.lchown(top + "/link", 7, 8)
    os.mkfifo(top + "/fifo", 0o622)
    s = socket.socket(socket.AF_UNIX)
    s.bind(top + "/socket")
    s.close()
    os.mkdir(top + "/sticky")
    os.chmod(top + "/sticky", 0o1777)
    os.setxattr(top + "/plain", "user.note", b"kept")
    os.setxattr(top + "/deep", "user.note", b"kept, too")
    # Capabilities of a program: CAP_NET_RAW, permitted and effective.
    os.setxattr(top + "/program", "security.capability",
                bytes.fromhex("0100000200200000000000000000000000000000"))
    with open(top + "/sparse", "wb") as f:
        f.truncate(1 << 30)
        f.seek(500 << 20)
        f.write(b"in the middle")
    for name in "plain", "program", "deep/er/random", "deep":
        os.utime(top + "/" + name, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    # Deleted while open, read up to the middle; and one of two names deleted.
    # CRIU gives both a name for a moment, which changes the directory's time.
    held = top + "/held"
    os.mkdir(held)
    write(held + "/deleted", b"first half, second half")
    deleted = open(held + "/deleted", "rb", buffering=0)
    deleted.read(12)
    os.unlink(held + "/deleted")
    write(held + "/one name", b"two names")
    os.link(held + "/one name", held + "/other name")
    renamed = open(held + "/one name", "rb", buffering=0)
    os.unlink(held + "/one name")
    # Mapped and written to.
    write(top + "/mapped", b"m" * 8192)
    with open(top + "/mapped", "r+b") as f:
        mapped = mmap.mmap(f.fileno(), 8192)
    mapped[4096:4100] = b"here"
    return {"top": top, "deleted": deleted, "renamed": renamed, "mapped": mapped}


def change_image():
    """Changes to files of the image below."""
    os.unlink("/etc/debian_version")
    with open("/etc/services", "a") as f:
        f.write("# appended in the pod\n")
    os.chmod("/etc/issue", 0o600)
    directory = "/usr/share/doc/bash"
    if os.path.isdir(directory):
        for name in os.listdir(directory):
            os.unlink(directory + "/" + name)
        os.rmdir(directory)
    else:
        os.makedirs("/usr/share/doc", exist_ok=True)
    os.mkdir(directory)
    write(directory + "/only this", b"new")


def describe(path):
    st = os.lstat(path)
    about = [oct(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns]
    if not stat.S_ISLNK(st.st_mode):
        about += sorted((n, os.getxattr(path, n)) for n in os.listxattr(path))
    if stat.S_ISLNK(st.st_mode):
        about.append(os.readlink(path))
    elif stat.S_ISDIR(st.st_mode):
        about.append(sorted(os.listdir(path)))
    elif stat.S_ISREG(st.st_mode):
        about += [st.st_nlink, st.st_size, "sparse" if st.st_blocks * 512 < st.st_size // 2 else "full"]
        digest = hashlib.sha256()
        with open(path, "rb") as f:
            if st.st_size > 100 << 20:
                f.seek(500 << 20)
                digest.update(f.read(4096))
            else:
                digest.update(f.read())
        about.append(digest.hexdigest())
    return about


def survey():
    found = {}
    for top in tops + ["/usr/share/doc/bash"]:
        for directory, _, files in os.walk(top):
            for path in [directory] + [os.path.join(directory, f) for f in files]:
                found[path] = describe(path)
    for path in "/etc/services", "/etc/issue":
        found[path] = describe(path)
    found["/etc/debian_version"] = os.path.lexists("/etc/debian_version")
    return found


def held(h):
    """What is wrong with the open files."""
    wrong = []
    top = h["top"]
    h["deleted"].seek(12)
    if (rest := h["deleted"].read()) != b"second half":
        wrong.append(f"deleted file has {rest!r}")
    if (links := os.fstat(h["deleted"].fileno()).st_nlink) != 0:
        wrong.append(f"deleted file has {links} links")
    if (names := os.listdir(top + "/held")) != ["other name"]:
        wrong.append(f"beside the open files there are {names}")
    a, b = os.fstat(h["renamed"].fileno()), os.stat(top + "/held/other name")
    if (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino):
        wrong.append("an open file and its other name are two files now")
    h["renamed"].seek(0)
    if (content := h["renamed"].read()) != b"two names":
        wrong.append(f"the file with two names has {content!r}")
    h["mapped"][0:4] = b"more"
    with open(top + "/mapped", "rb") as f:
        if f.read(4) != b"more" or h["mapped"][4096:4100] != b"here":
            wrong.append("a mapping and its file have come apart")
    h["mapped"][0:4] = b"mmmm"
    h["mapped"].flush()
    return wrong


def append(path):
    """Writes numbered lines for as long as the process lives."""
    with open(path, "a") as f:
        n = 0
        while True:
            f.write(f"{n}\n")
            f.flush()
            n += 1
            time.sleep(0.0005)


def check(note, handles, log):
    wrong = []
    for h in handles:
        wrong += held(h)
    now = survey()
    for path in sorted(set(note) | set(now)):
        before, after = note.get(path), now.get(path)
        if path.endswith(("/mapped", "/held")) and before and after:  # their time changes
            before, after = before[:3] + before[4:], after[:3] + after[4:]
        if before != after:
            wrong.append(f"{path!r} is {after}, was {before}")
    with open(log) as f:
        lines = f.read().split("\n")[:-1]
    if lines != [str(n) for n in range(len(lines))] :
        wrong.append(f"the log of {len(lines)} lines has a gap or a repetition")
    return " | ".join(wrong) or "ok"


handles = [populate(top) for top in tops]
change_image()
os.makedirs("/var/lib/appended")
log = "/var/lib/appended/log"
threading.Thread(target=append, args=(log,), daemon=True).start()
note = survey()

server = socket.create_server(("0.0.0.0", port))
while True:
    connection, _ = server.accept()
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            try:
                reply = check(note, handles, log) if line.strip() == "check" else line.strip()
            except Exception as e:
                reply = repr(e)
            lines.write(reply.replace("\n", "\\n") + "\n")
            lines.flush()
