"""Sends what it is told to on its standard input, with one client, as that client is by default."""

import asyncio
import concurrent.futures
import sys

BODY = b"hello"


def told(error):
    return f"{type(error).__module__.split('.')[0]}.{type(error).__name__}: {error}".replace("\n", " ")


def outcome(status, text):
    return "ok" if status == 200 else f"{status} {text.strip()}"


def waves(send):
    """The same for a client that blocks: a thread for each request of a wave."""
    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        for line in sys.stdin:
            method, url, count = line.split()

            def once(_, method=method, url=url):
                try:
                    return send(method, url)
                except Exception as error:
                    return told(error)

            for result in threads.map(once, range(int(count))):
                print(result, flush=True)


async def async_waves(send):
    """The same for one that is awaited."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        method, url, count = line.split()

        async def once(method=method, url=url):
            try:
                return await send(method, url)
            except Exception as error:
                return told(error)

        for result in await asyncio.gather(*(once() for _ in range(int(count)))):
            print(result, flush=True)


def use_requests():
    import requests

    session = requests.Session()

    def send(method, url):
        response = session.request(method, url, data=BODY if method == "POST" else None)
        return outcome(response.status_code, response.text)

    waves(send)


def use_httpx():
    import httpx

    client = httpx.Client()

    def send(method, url):
        response = client.request(method, url, content=BODY if method == "POST" else None)
        return outcome(response.status_code, response.text)

    waves(send)


def use_aiohttp():
    import aiohttp

    async def main():
        async with aiohttp.ClientSession() as session:

            async def send(method, url):
                async with session.request(method, url, data=BODY if method == "POST" else None) as response:
                    return outcome(response.status, await response.text())

            await async_waves(send)

    asyncio.run(main())


{"requests": use_requests, "httpx": use_httpx, "aiohttp": use_aiohttp}[sys.argv[1]]()
