"""Applications whose requests hang: WSGI under a framework that renames everything, and ASGI."""

import ctypes
import threading

never = threading.Event()


def application(environ, start_response):
    environ["wsgi.input"].read()
    return Framework(environ).dispatch()


class Framework:
    def __init__(self, variables):
        self.variables = variables

    def dispatch(self):
        return self.view({"QUERY": self.variables["QUERY_STRING"]})

    def view(self, query):
        never.wait()


def blocking(environ, start_response):
    """A call that gevent knows nothing of."""
    ctypes.CDLL(None).sleep(600)


class OnlyPositional:
    """The environ goes by another name, and a request to elsewhere is being prepared further in."""

    def __call__(self, everything, begin):
        inner = {"REQUEST_METHOD": "DELETE", "PATH_INFO": "/elsewhere", "REMOTE_ADDR": "192.0.2.1"}
        return self.forward(inner)

    def forward(self, request):
        never.wait()


renamed = OnlyPositional()


class Request:
    """As Starlette's: what a handler in a thread of the pool has of its request."""

    def __init__(self, scope):
        self.receive = None
        self.scope = scope


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await receive()
        if scope["path"].startswith("/thread"):
            import asyncio

            await asyncio.get_running_loop().run_in_executor(None, handler, Request(scope))
        never.wait()


def handler(request):
    never.wait()


if __name__ == "__main__":
    import sys

    import uvicorn
    from ready import say_ready

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            say_ready(str(self.servers[0].sockets[0].getsockname()[1]))

    Server(uvicorn.Config(asgi, port=0, log_level="critical", http=sys.argv[1])).run()
