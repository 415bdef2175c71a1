"""Keep-alive traffic of containers: each request after the first is lost to the server's FIN.

    traffic.py serve ADDRESS:PORT...
    traffic.py race FROM ROUNDS ADDRESS:PORT...

A server prints `ready` once it listens and runs until it is ended.
"""

import socket
import sys
import threading
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: kube\r\nX-Padding: ".ljust(196, b"x") + b"\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n".ljust(940, b"x")

IDLE_TIMEOUT = 0.4
GAP = 0.6


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def answer(connection):
    with connection:
        if connection.recv(65536):
            connection.sendall(RESPONSE)
            time.sleep(IDLE_TIMEOUT)


def accept(listener):
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],)).start()


def serve(*addresses):
    listeners = [socket.create_server(address(text)) for text in addresses]
    print("ready", flush=True)
    for listener in listeners:
        threading.Thread(target=accept, args=(listener,)).start()


def lose(source, peer):
    with socket.create_connection(address(peer), 5, (source, 0)) as connection:
        connection.sendall(REQUEST)
        got = 0
        while got < len(RESPONSE):
            part = connection.recv(65536)
            assert part, f"{got} bytes of an answer"
            got += len(part)
        time.sleep(GAP)
        connection.sendall(REQUEST)
        try:
            assert connection.recv(1) == b"", "an answer"
        except ConnectionResetError:
            pass
        # The socket goes with the process, whose last act may be this: time for the RST.
        time.sleep(0.1)


def race(source, rounds, *peers):
    failures = []

    def attempt(peer):
        try:
            lose(source, peer)
        except (AssertionError, OSError) as error:
            failures.append(f"{peer}: {error!r}")

    for _ in range(int(rounds)):
        threads = [threading.Thread(target=attempt, args=(peer,)) for peer in peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    {"serve": serve, "race": race}[sys.argv[1]](*sys.argv[2:])
