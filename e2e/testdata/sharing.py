"""Processes that share memory in every way, and write to it all the time: what is in a
page follows from which one it is and how often it was written, which its writer knows
in memory of its own. It answers a line with a count for the connection and the line; to
"check" with "whole PAGES WRITES" if every page, hole, size and seal is as it was made."""
import asyncio
import ctypes
import fcntl
import mmap
import os
import random
import sys

mebibytes, port = int(sys.argv[1]), int(sys.argv[2])
PAGE = 4096
WRITERS = 3
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
PUNCH, KEEP_SIZE = 2, 1
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def content(name, page, written):
    return random.Random(f"{name} {page} {written}").randbytes(PAGE)


def blocks(pages):
    return pages * PAGE // 512


class Pages:
    """Some pages of a mapping, which one process writes to; the others of every 64 are holes."""

    def __init__(self, name, memory, first, pages, writer):
        self.name, self.memory, self.first = name, memory, first
        self.mine = [p for p in pages if p % WRITERS == writer and p >= first]
        self.written = dict.fromkeys(self.mine, 0)
        self.writes = 0
        for page in self.mine:
            self.write(page)

    def write(self, page):
        self.written[page] += 1
        self.writes += 1
        at = (page - self.first) * PAGE
        self.memory[at:at + PAGE] = content(self.name, page, self.written[page])

    def write_some(self, chance):
        self.write(chance.choice(self.mine))

    def check(self):
        for page in self.mine:
            at = (page - self.first) * PAGE
            if self.memory[at:at + PAGE] != content(self.name, page, self.written[page]):
                return f"page {page} of {self.name}, written {self.written[page]} times, begins with {self.memory[at:at + 16].hex()}"


class Changing:
    """A memfd that is only open: it gets longer and shorter, and holes."""

    def __init__(self):
        self.fd = os.memfd_create("changing /\u00e9 x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.want = {}
        self.size = 0
        self.count = self.writes = 0

    def write_some(self, chance):
        self.count += 1
        self.writes += 1
        page = chance.randrange(512)
        match chance.randrange(8):
            case 0:
                self.size = chance.randrange(1, 512) * PAGE + chance.choice([0, 1, 4095])
                os.ftruncate(self.fd, self.size)
                self.want = {p: c[:self.size - p * PAGE] for p, c in self.want.items() if p * PAGE < self.size}
            case 1 | 2:
                if libc.fallocate(self.fd, PUNCH | KEEP_SIZE, page * PAGE, 5 * PAGE):
                    raise OSError(ctypes.get_errno(), "fallocate")
                for p in range(page, page + 5):
                    self.want.pop(p, None)
            case _:
                self.want[page] = content("changing", page, self.count)
                os.pwrite(self.fd, self.want[page], page * PAGE)
                self.size = max(self.size, page * PAGE + PAGE)

    def check(self):
        st = os.fstat(self.fd)
        if st.st_size != self.size or st.st_blocks != blocks(len(self.want)):
            return f"the changing memfd has {st.st_size} bytes and {st.st_blocks} blocks, not {self.size} and {blocks(len(self.want))}"
        for page in range((self.size + PAGE - 1) // PAGE):
            length = min(PAGE, self.size - page * PAGE)
            if os.pread(self.fd, PAGE, page * PAGE) != self.want.get(page, b"").ljust(length, b"\0")[:length]:
                return f"page {page} of the changing memfd is another"
        if not os.readlink(f"/proc/self/fd/{self.fd}").startswith("/memfd:changing /\u00e9 x"):
            return f"the changing memfd is called {os.readlink(f'/proc/self/fd/{self.fd}')}"


class Coming:
    """Segments that come and go."""

    def __init__(self):
        self.there = []
        self.count = self.writes = 0

    def write_some(self, chance):
        self.count += 1
        if len(self.there) < 4 or chance.randrange(2):
            m = mmap.mmap(-1, 8 * PAGE)
            m[:PAGE] = content("coming", 0, self.count)
            self.there.append((self.count, m))
        if len(self.there) > 6:
            self.there.pop(chance.randrange(6))[1].close()

    def check(self):
        for count, m in self.there:
            if m[:PAGE] != content("coming", 0, count) or any(m[PAGE:]):
                return f"segment {count} that came is another"


class Lasting:
    """Memfds that nobody changes: one sealed, one with holes for most of it."""

    writes = 0

    def __init__(self):
        self.sealed = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(self.sealed, content("sealed", 0, 0) * 500 + b"the end")
        fcntl.fcntl(self.sealed, fcntl.F_ADD_SEALS, SEALS)
        self.views = [mmap.mmap(self.sealed, 0, flags=f, prot=mmap.PROT_READ) for f in (mmap.MAP_PRIVATE, mmap.MAP_SHARED)]
        self.sparse = os.memfd_create("sparse", os.MFD_CLOEXEC)
        os.ftruncate(self.sparse, 8 << 30)
        self.places = [random.Random(p).randrange((8 << 30) // PAGE) for p in range(40)]
        for p in self.places:
            os.pwrite(self.sparse, content("sparse", p, 0), p * PAGE)
        os.lseek(self.sparse, 12345, os.SEEK_SET)

    def write_some(self, chance):
        pass

    def check(self):
        want = content("sealed", 0, 0) * 500 + b"the end"
        if any(view[:] != want for view in self.views) or os.pread(self.sealed, len(want) + 1, 0) != want:
            return "the sealed memfd is another"
        if fcntl.fcntl(self.sealed, fcntl.F_GET_SEALS) != SEALS:
            return f"the seals are {fcntl.fcntl(self.sealed, fcntl.F_GET_SEALS)}"
        if fcntl.fcntl(self.sparse, fcntl.F_GET_SEALS) != fcntl.F_SEAL_SEAL:
            return "what could not be sealed can be"
        if os.lseek(self.sparse, 0, os.SEEK_CUR) != 12345:
            return "the position in the memfd with holes is another"
        st = os.fstat(self.sparse)
        if st.st_size != 8 << 30 or st.st_blocks != blocks(len(set(self.places))):
            return f"the memfd with holes has {st.st_size} bytes and {st.st_blocks} blocks"
        for p in self.places:
            if os.pread(self.sparse, PAGE, p * PAGE) != content("sparse", p, 0):
                return f"page {p} of the memfd with holes is another"


def work(writer, anonymous, shifted, lasting):
    """What each process writes to."""
    first = writer * 16  # each maps it from another page on
    view = mmap.mmap(shifted, 0, offset=first * PAGE)
    parts = [
        Pages("anonymous", anonymous, 0, [p for p in range(mebibytes * 256) if p // 64 % 2 == 0], writer),
        Pages("shifted", view, first, range(64, 1024), writer), lasting,
    ]
    return parts + ([Changing(), Coming()] if writer == 0 else [Coming()])


def check(parts):
    for part in parts:
        if bad := part.check():
            return bad
    return f"whole {sum(part.writes for part in parts)}"


def write_some(parts, chance):
    for part in parts:
        for _ in range(5):
            part.write_some(chance)


def child(writer, commands, replies, *shared):
    parts = work(writer, *shared)
    chance = random.Random(writer)
    os.set_blocking(commands, False)
    while True:
        write_some(parts, chance)
        try:
            command = os.read(commands, 1)
        except BlockingIOError:
            command = None
        if command == b"":
            os._exit(0)
        if command:
            os.write(replies, f"{check(parts)}\n".encode())
        os.sched_yield()
        libc.usleep(10000)


async def serve(reader, writer):
    count = 0
    while line := await reader.readline():
        count += 1
        text = line.decode().rstrip("\n")
        if text == "check":
            said = [check(mine)]
            for commands, _ in children:
                os.write(commands, b"c")
            for _, replies in children:
                said.append(replies.readline().strip())
            bad = [s for s in said if not s.startswith("whole ")]
            text = bad[0] if bad else f"whole {sum(int(s.split()[1]) for s in said)} writes"
        writer.write(f"sharing {count} {text}\n".encode())
        await writer.drain()
    writer.close()


async def keep_writing():
    chance = random.Random(0)
    while True:
        await asyncio.sleep(0.01)
        write_some(mine, chance)


async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", port)
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_writing())
        group.create_task(server.serve_forever())


shared = (mmap.mmap(-1, mebibytes << 20), os.memfd_create("shifted", 0), Lasting())
os.ftruncate(shared[1], 4 << 20)
children = []
for n in range(1, WRITERS):
    (command_end, commands), (reply_end, replies) = os.pipe(), os.pipe()
    if os.fork() == 0:
        child(n, command_end, replies, *shared)
    children.append((commands, os.fdopen(reply_end)))
mine = work(0, *shared)
asyncio.run(main())
