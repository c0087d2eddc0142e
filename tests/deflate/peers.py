"""Clients of Python's `websockets`, for tests/deflate.rs. Each line of stdin is a command, and each line of stdout an
event, in JSON."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

peers = {}
paused = {}


def write(**event):
    print(json.dumps(event), flush=True)


async def run(peer, url, options):
    factory = ClientPerMessageDeflateFactory(client_max_window_bits=True, **options)
    try:
        async with connect(url, extensions=[factory], compression=None, proxy=None, max_queue=4) as socket:
            peers[peer] = socket
            paused[peer] = asyncio.Event()
            paused[peer].set()
            write(peer=peer, extensions=socket.response.headers["Sec-WebSocket-Extensions"])
            while True:
                await paused[peer].wait()
                write(peer=peer, text=await socket.recv())
    except ConnectionClosed as error:
        write(peer=peer, closed=error.rcvd.code if error.rcvd else 1006)
    except Exception as error:
        write(peer=peer, error=repr(error))


async def main():
    loop, tasks = asyncio.get_running_loop(), set()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        if "open" in command:
            tasks.add(asyncio.create_task(run(command["open"], command["url"], command["options"])))
        elif "send" in command:
            await peers[command["send"]].send(command["text"])
        elif "close" in command:
            tasks.add(asyncio.create_task(peers[command["close"]].close()))
        elif "pause" in command:
            paused[command["pause"]].clear()
        elif "resume" in command:
            paused[command["resume"]].set()


asyncio.run(main())
