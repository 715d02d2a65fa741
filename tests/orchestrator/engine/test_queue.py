"""The queue's waiting, without Ray: the actor's class is a plain one."""

from __future__ import annotations

import asyncio

from scalespec.orchestrator.engine.queue import Queue
from scalespec.orchestrator.study.units import Unit


def unit(number: int, workers: int = 1) -> Unit:
    return Unit(number, f"family-{number}", (f"run-{number}",), workers, 1.0)


def test_a_lane_waits_until_there_is_work():
    async def scene() -> None:
        queue = Queue()
        lanes = {asyncio.ensure_future(queue.take(lane, 1, "x", 0)): lane for lane in "ab"}
        await asyncio.sleep(0.01)
        news, _ = await queue.news(0, -1, 0.0)
        assert news.waiting == {"a": 1, "b": 1}
        before = queue._version
        await asyncio.sleep(0.05)
        assert queue._version == before, "waiting lanes do not keep each other awake"
        await queue.add([unit(0)])
        done, left = await asyncio.wait(lanes, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result()["number"] for task in done] == [0]
        (other,) = left
        await queue.close([lanes[other]])
        assert await asyncio.wait_for(other, 1) == "close"

    asyncio.run(scene())


def test_the_driver_is_woken_by_what_lanes_tell():
    async def scene() -> None:
        queue = Queue()
        _, version = await queue.news(0, -1, 0.0)
        waiting = asyncio.ensure_future(queue.news(0, version, 5.0))
        await asyncio.sleep(0.01)
        await queue.tell("a", "runs/x", "result")
        news, version = await asyncio.wait_for(waiting, 1)
        assert news.hints == (("a", "runs/x", "result"),)
        later, _ = await queue.news(news.read, version, 0.01)
        assert later.hints == ()

    asyncio.run(scene())


def test_what_no_lane_takes_is_named():
    async def scene() -> None:
        queue = Queue()
        await queue.add([unit(0)])
        for lane in "ab":
            await queue.take(lane, 1, "x", 0)
            await queue.gone(lane, "cannot import")
        news, _ = await queue.news(0, -1, 0.0)
        assert news.given_up == {"run-0": "cannot import"}
        assert news.work == {}

    asyncio.run(scene())
