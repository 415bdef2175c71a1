"""Pools of Python, used after gaps of one's choice: kind, address, gaps (from, to), clients, and a line
of the advice. Prints what came of the requests when it is told to end."""
import asyncio, json, random, signal, sys, threading, time

kind, address, low, high, clients, line = sys.argv[1:]
low, high, clients = float(low), float(high), int(clients)
url = f"http://{address}/"
counts = {"requests": 0, "failed": 0, "last": ""}
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())


def gap(i):
    return random.uniform(low, high) if i % 4 else random.uniform(0.3, 1.0)


def settings(names):
    """What a line such as `limits=httpx.Limits(...)` passes to a constructor."""
    return eval(f"dict({line})", names)


def count(error=None):
    counts["requests"] += 1
    if error is not None:
        counts["failed"] += 1
        counts["last"] = repr(error)


def threads(make):
    """A client of its own for each thread; `make` returns what makes a request."""
    def work(i):
        request = make()
        time.sleep(random.random())
        while not stop.is_set():
            try:
                request()
                count()
            except Exception as error:
                count(error)
            stop.wait(gap(i))
    all = [threading.Thread(target=work, args=[i]) for i in range(clients)]
    [one.start() for one in all]
    [one.join() for one in all]


async def tasks():
    import aiohttp

    async def work(i):
        async with aiohttp.ClientSession(**settings({"aiohttp": aiohttp})) as session:
            await asyncio.sleep(random.random())
            while not stop.is_set():
                try:
                    async with session.post(url, data=b"x" * 200) as answer:
                        await answer.read()
                        answer.raise_for_status()
                    count()
                except aiohttp.ClientError as error:
                    count(error)
                await asyncio.sleep(gap(i))
    await asyncio.gather(*map(work, range(clients)))


def httpx_client():
    import httpx
    client = httpx.Client(**settings({"httpx": httpx}))
    return lambda: client.post(url, content=b"x" * 200).raise_for_status()


if kind == "aiohttp":
    asyncio.run(tasks())
else:
    threads(httpx_client)
print(json.dumps(counts))
