"""Measures after how long a server closes an idle connection.

Arguments: address, port, `plain` or `tls`, number of connections. Prints the shortest time in
seconds from the end of a response to the first byte or EOF after it: what makes it longer, the end
of a loop's turn or a busy machine, is no part of the timeout.
"""

import select
import socket
import ssl
import sys
import threading
import time

address, port, kind, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
request = b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: 2\r\n\r\nhi"
measured = []


def measure():
    connection = socket.create_connection((address, port))
    stream = connection
    if kind == "tls":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream = context.wrap_socket(connection)
    stream.sendall(request)
    response = b""
    while b"\r\n\r\n" not in response:
        response += stream.recv(65536)
    head, _, body = response.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += stream.recv(65536)
    start = time.monotonic()
    select.select([stream], [], [])
    measured.append(time.monotonic() - start)
    stream.close()


threads = [threading.Thread(target=measure) for _ in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(min(measured))
