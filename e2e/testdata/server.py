"""An asyncio server that answers each line with its name, a count for the
connection and the line; a task of its own counts hundredths of a second
meanwhile. "ticks" is answered with that, and "quit N" ends the server with N."""
import asyncio
import os
import sys

name, port = sys.argv[1], int(sys.argv[2])
ticks = 0


async def tick():
    global ticks
    while True:
        await asyncio.sleep(0.01)
        ticks += 1


async def serve(reader, writer):
    count = 0
    while line := await reader.readline():
        count += 1
        text = line.decode().rstrip("\n")
        if text == "ticks":
            text = str(ticks)
        writer.write(f"{name} {count} {text}\n".encode())
        await writer.drain()
        if text.startswith("quit "):
            os._exit(int(text.removeprefix("quit ")))
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", port)
    async with asyncio.TaskGroup() as group:
        group.create_task(tick())
        group.create_task(server.serve_forever())


asyncio.run(main())
