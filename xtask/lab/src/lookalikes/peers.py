"""Ends of connections that need exact timing or an exact way of closing.

    peers.py ROLE ARGUMENT...

A role is a function of this file with a plain name. It ends with status 0 if all went as meant; a
server prints `ready` once it listens, and runs until it is ended.
"""

import asyncio
import http.client
import http.server
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: lookalike\r\nX-Padding: ".ljust(196, b"x") + b"\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n".ljust(940, b"x")


def _together(function, arguments):
    """Calls the function once for each element, all at a time; any exception ends the process."""

    def call(argument):
        try:
            function(*argument)
        except BaseException as error:
            print(f"{function.__name__}{argument}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)

    threads = [threading.Thread(target=call, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    return threads


def _serve(host, ports, handle):
    """Calls `handle(connection, port)` for each connection, each in a thread of its own."""

    def accept(listener, port):
        while True:
            _together(handle, [(listener.accept()[0], port)])

    listeners = [(socket.create_server((host, port), backlog=64), port) for port in ports]
    print("ready", flush=True)
    _together(accept, listeners)


def _answer(connection):
    """Answers one request of whatever size."""
    assert connection.recv(65536), "no request"
    connection.sendall(RESPONSE)


def _ask(connection):
    connection.sendall(REQUEST)
    got = 0
    while got < len(RESPONSE):
        data = connection.recv(65536)
        assert data, "no answer"
        got += len(data)


# TLS. A specification is `port,version,closer,manner`, the same for both ends; manner:
#   unwrap  close_notify, wait for that of the other end, close
#   notify  close_notify and close at once
#   sudden  close without close_notify


def _tls_end(connection, is_closer, manner):
    if not is_closer:
        assert connection.recv(1) == b"", "data instead of an end"
        manner = "unwrap"
    else:
        time.sleep(1)
    try:
        if manner == "notify":
            connection.settimeout(0)
        if manner != "sudden":
            connection.unwrap()
    except OSError:
        pass  # the other end does not answer, or we do not wait for it
    connection.close()


def _tls_specs(specs):
    for spec in specs:
        port, version, closer, manner = spec.split(",")
        yield int(port), ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"], closer, manner


def tls_serve(host, certificate, key, *specs):
    by_port = {spec[0]: spec for spec in _tls_specs(specs)}

    def handle(connection, port):
        _, version, closer, manner = by_port[port]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.minimum_version = context.maximum_version = version
        connection = context.wrap_socket(connection, server_side=True)
        _answer(connection)
        _answer(connection)
        _tls_end(connection, closer == "server", manner)

    _serve(host, by_port, handle)


def tls_get(host, *specs):
    def talk(port, version, closer, manner):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        connection = context.wrap_socket(socket.create_connection((host, port)))
        _ask(connection)
        time.sleep(0.4)
        _ask(connection)
        _tls_end(connection, closer == "client", manner)

    _together(talk, _tls_specs(specs))


# HTTP


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/slow":
            time.sleep(2)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        if self.path == "/close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


def http_serve(port):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), _Handler)
    print("ready", flush=True)
    server.serve_forever()


def http_get(port, gap, header, *paths):
    """Requests on one connection, as far as the server keeps it, `gap` seconds apart."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    for path in paths:
        connection.request("GET", path, headers=dict([header.split(":")]))
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        time.sleep(float(gap))
        if header == "Connection:close":
            connection.close()  # opened again by the next request
    connection.close()


def http_pool(port, count, seconds):
    """A client that watches its idle connections, until the server has closed each; at most so long."""
    connections = [socket.create_connection(("127.0.0.1", int(port))) for _ in range(int(count))]
    for connection in connections:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: lookalike\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    print("ready", flush=True)
    end = time.monotonic() + float(seconds)
    while connections:
        ended = select.select(connections, [], [], max(0, end - time.monotonic()))[0]
        assert ended, f"{len(connections)} connections are still open"
        for connection in ended:
            assert connection.recv(1) == b"", "data on an idle connection"
            connection.close()
            connections.remove(connection)


# Connections without use


def connects(port, count, is_open):
    """Connects that send nothing: ended by FIN and by RST in turn, or refused by a closed port."""
    for number in range(int(count)):
        with socket.socket() as connection:
            error = connection.connect_ex(("127.0.0.1", int(port)))
            assert (error == 0) == (is_open == "open"), os.strerror(error)
            if number % 2:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        time.sleep(0.05)


# Streams


def _write_many(connection):
    for _ in range(30_000):
        connection.sendall(bytes(100))
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    connection.close()


def _read_late(connection):
    time.sleep(2)
    got = 0
    while data := connection.recv(65536):
        got += len(data)
    assert got == 3_000_000, got
    connection.close()


def blocked(upload, download):
    """A writer whose reader sleeps for two seconds: the client, and the server, writes."""

    def talk(port, server, client):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(port)))
        listener.listen()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect(listener.getsockname())
        accepted, _ = listener.accept()
        for thread in _together(lambda f, c: f(c), [(server, accepted), (client, connection)]):
            thread.join()

    _together(talk, [(upload, _read_late, _write_many), (download, _write_many, _read_late)])


def ws_serve(port):
    from websockets.asyncio.server import serve

    async def handle(connection):
        if connection.request.path == "/leave":
            await connection.send("hello")
            await asyncio.sleep(1.2)
            return
        async for message in connection:
            await connection.send(message)

    async def run():
        async with serve(handle, "127.0.0.1", int(port), ping_interval=0.3) as server:
            print("ready", flush=True)
            await server.serve_forever()

    asyncio.run(run())


def ws_get(*ports):
    from websockets.asyncio.client import connect

    async def talk(port):
        async with connect(f"ws://127.0.0.1:{port}/", ping_interval=0.3) as connection:
            for gap in (0, 0.5, 1.2):
                await asyncio.sleep(gap)
                await connection.send("hello")
                assert await connection.recv() == "hello"
            await asyncio.sleep(1.2)

    async def be_left(port):
        async with connect(f"ws://127.0.0.1:{port}/leave", ping_interval=0.3) as connection:
            assert [m async for m in connection] == ["hello"]

    async def run():
        await asyncio.gather(*(end(port) for port in ports for end in (talk, be_left)))

    asyncio.run(run())


# The race itself


def race_serve(host, port, idle):
    def handle(connection, _):
        _answer(connection)
        time.sleep(float(idle))
        connection.close()

    _serve(host, [int(port)], handle)


def race_get(host, port, wait, count):
    """A client that does not look at its connection before it reuses it."""

    def talk(number):
        time.sleep(0.05 * number)
        connection = socket.create_connection((host, int(port)))
        _ask(connection)
        time.sleep(float(wait))
        connection.sendall(REQUEST)
        try:
            assert connection.recv(1) == b"", "an answer"
        except ConnectionResetError:
            pass
        connection.close()

    _together(talk, [(number,) for number in range(int(count))])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
