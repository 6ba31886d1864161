"""Healthy event loops: asyncio, gevent, eventlet, uvicorn. The first argument names the case."""

import asyncio
import os
import sys
import threading
import time

from ready import say_ready


def asyncio_idle():
    async def main():
        say_ready()
        await asyncio.Event().wait()

    asyncio.run(main())


def asyncio_sleeps():
    async def main():
        say_ready()
        await asyncio.sleep(3600)

    asyncio.run(main())


def asyncio_server():
    async def main():
        server = await asyncio.start_server(lambda reader, writer: reader.read(), "127.0.0.1", 0)
        # A client that is connected and silent.
        _reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        say_ready()
        await server.serve_forever()
        writer.close()

    asyncio.run(main())


def asyncio_threads():
    async def main():
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, time.sleep, 0.01)
        say_ready()
        await asyncio.to_thread(time.sleep, 3600)

    asyncio.run(main())


def asyncio_child():
    async def main():
        child = await asyncio.create_subprocess_exec("sleep", "3600")
        say_ready()
        await child.wait()

    asyncio.run(main())


def asyncio_child_output():
    async def main():
        child = await asyncio.create_subprocess_exec("sleep", "3600", stdout=asyncio.subprocess.PIPE)
        say_ready()
        await child.communicate()

    asyncio.run(main())


def asyncio_ticks():
    """Callbacks that block for an instant, over and over: not nice, and not stuck."""

    async def main():
        say_ready()
        while True:
            time.sleep(0.05)
            await asyncio.sleep(0.1)

    asyncio.run(main())


def asyncio_busy():
    """Always something to do: the loop polls without waiting."""
    os.nice(19)

    async def counts():
        while True:
            sum(range(1000))
            await asyncio.sleep(0)

    async def main():
        say_ready()
        await asyncio.gather(counts(), counts())

    asyncio.run(main())


def asyncio_datagrams():
    async def main():
        await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        say_ready()
        await asyncio.Event().wait()

    asyncio.run(main())


def asyncio_in_a_thread():
    """The loop serves in a thread, the main thread waits for its end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    say_ready()
    thread.join()


def asyncio_future_of_a_thread():
    """A plain thread waits for a coroutine that waits for news."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def news():
        await asyncio.Event().wait()

    future = asyncio.run_coroutine_threadsafe(news(), loop)
    say_ready()
    future.result()


def asyncio_lock():
    """A coroutine waits for another one's lock, with the loop free."""

    async def main():
        lock = asyncio.Lock()

        async def holds():
            async with lock:
                await asyncio.sleep(3600)

        holder = asyncio.create_task(holds())
        await asyncio.sleep(0.01)
        say_ready()
        async with lock:
            pass
        await holder

    asyncio.run(main())


def asyncio_polls_a_file():
    async def main():
        say_ready()
        while True:
            await asyncio.sleep(0.01)

    asyncio.run(main())


def gevent_idle():
    import gevent

    say_ready()
    gevent.sleep(3600)


def gevent_patched():
    """Everything waits the green way: locks, queues, events, sockets."""
    from gevent import monkey

    monkey.patch_all()
    import queue
    import socket

    import gevent
    import gevent.pool

    lock = threading.Lock()
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    pool = gevent.pool.Pool(10)

    def takes_turns():
        while True:
            with lock:
                time.sleep(0.2)

    for work in (takes_turns, takes_turns, queue.Queue().get, threading.Event().wait, server.accept):
        pool.spawn(work)
    pool.spawn(client.recv, 100)
    gevent.sleep(0)
    say_ready()
    pool.join()


def gevent_server():
    from gevent.server import StreamServer

    server = StreamServer(("127.0.0.1", 0), lambda connection, address: connection.recv(100))
    server.start()
    say_ready()
    server.serve_forever()


def gevent_thread_pool():
    """A native thread of gevent's pool is there to block."""
    import gevent

    hub = gevent.get_hub()
    blocked = hub.threadpool.spawn(time.sleep, 3600)
    hub.threadpool.spawn(time.sleep, 0.01)
    gevent.sleep(0.1)
    say_ready()
    blocked.get()


def gevent_wsgi():
    from gevent.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), lambda environ, start: [], log=None)
    server.start()
    say_ready()
    server.serve_forever()


def eventlet_idle():
    import eventlet

    say_ready()
    eventlet.sleep(3600)


def eventlet_patched():
    import eventlet

    eventlet.monkey_patch()
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    pool = eventlet.GreenPool()
    pool.spawn(server.accept)
    pool.spawn(threading.Event().wait)
    pool.spawn(time.sleep, 3600)
    eventlet.sleep(0)
    say_ready()
    pool.waitall()


def uvicorn_idle():
    import uvicorn

    async def app(scope, receive, send):
        pass

    config = uvicorn.Config(app, port=0, log_level="critical")

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            say_ready()

    Server(config).run()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
