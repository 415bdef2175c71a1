"""The Python applications of the tests: WSGI for gunicorn and waitress, ASGI for uvicorn and hypercorn."""

BODY = b"ok\n" * 50


def wsgi(environ, start_response):
    environ["wsgi.input"].read()
    start_response(
        "200 OK",
        [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))],
    )
    return [BODY]


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})
