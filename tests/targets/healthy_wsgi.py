"""A WSGI application for servers that stay idle."""


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
