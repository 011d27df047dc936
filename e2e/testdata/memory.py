"""A server with much memory that it writes to. What is in a page follows from which
one it is and how often it was written, and can't be compressed. It answers a line with a count for the
connection and the line; to "check" with "whole PAGES WRITES" if every page is as
it was written, and the time it took, to "rate N" it begins to write to N pages a
second."""
import asyncio
import mmap
import random
import sys
import time

pages, port, rate = int(sys.argv[1]) * 256, int(sys.argv[2]), int(sys.argv[3])
PAGE = 4096
memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
written = [0] * pages
writes = 0
chance = random.Random(1)


def content(page):
    return random.Random(page << 32 | written[page]).randbytes(PAGE)


def write(page):
    global writes
    written[page] += 1
    writes += 1
    memory[page * PAGE:(page + 1) * PAGE] = content(page)


def check():
    begin = time.monotonic()
    for page in range(pages):
        if memory[page * PAGE:(page + 1) * PAGE] != content(page):
            return f"page {page}, written {written[page]} times, begins with {memory[page * PAGE:page * PAGE + 16].hex()}"
    return f"whole {pages} {writes} {time.monotonic() - begin:.3f}"


async def keep_writing():
    due = 0.0
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.01)
        now = time.monotonic()
        due = min(due + rate * (now - last), rate)
        last = now
        while due >= 1:
            write(chance.randrange(pages))
            due -= 1


async def serve(reader, writer):
    global rate
    count = 0
    while line := await reader.readline():
        count += 1
        text = line.decode().rstrip("\n")
        if text == "check":
            text = check()
        elif text.startswith("rate "):
            rate = int(text.removeprefix("rate "))
        writer.write(f"memory {count} {text}\n".encode())
        await writer.drain()
    writer.close()


async def main():
    for page in range(pages):
        write(page)
    server = await asyncio.start_server(serve, "0.0.0.0", port)
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_writing())
        group.create_task(server.serve_forever())


asyncio.run(main())
