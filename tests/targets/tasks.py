"""Tasks of asyncio that wait. Says "PID TID" of the loop's thread. The first argument is a case."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from ready import say_ready


def say():
    say_ready(f"{os.getpid()} {threading.get_native_id()}")


async def fetch(port):
    reader, _ = await asyncio.open_connection("127.0.0.1", port)
    return await reader.read(100)


async def consume(queue):
    return await queue.get()


async def take(lock):
    async with lock:
        await asyncio.sleep(600)  # holds


async def numbers():
    while True:
        await asyncio.sleep(600)  # numbers
        yield 1


async def iterate():
    async for _ in numbers():
        pass


async def silent(reader, writer):
    await asyncio.Event().wait()


async def waiting():
    server = await asyncio.start_server(silent, "127.0.0.1", 0, backlog=100)
    lock = asyncio.Lock()
    port = server.sockets[0].getsockname()[1]
    waits = [*(fetch(port) for _ in range(20)), take(lock), take(lock), iterate(), consume(asyncio.Queue())]
    tasks = [asyncio.create_task(each) for each in waits]
    await asyncio.sleep(0.5)
    say()
    await asyncio.gather(*tasks)


async def busy():
    async def beat():
        while True:
            await asyncio.sleep(0.001)  # beat

    async def brief():
        await asyncio.sleep(0.002)  # brief

    tasks = [asyncio.create_task(beat()) for _ in range(10)]
    say()
    while True:
        tasks[10:] = [asyncio.create_task(brief())]
        await asyncio.sleep(0.001)  # busy


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())
