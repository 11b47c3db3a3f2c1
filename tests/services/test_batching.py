from __future__ import annotations

import asyncio
import threading

import pytest

from trm.batching import MicroBatcher, Overloaded


def run(coroutine: object) -> object:
    return asyncio.run(coroutine)  # type: ignore[arg-type]


async def _started(batcher: MicroBatcher[int, int]) -> MicroBatcher[int, int]:
    batcher.start()
    return batcher


def test_concurrent_requests_share_one_call_and_get_their_own_answers() -> None:
    calls: list[list[int]] = []

    def square(numbers: list[int]) -> list[int]:
        calls.append(list(numbers))
        return [number**2 for number in numbers]

    async def main() -> list[list[int]]:
        batcher = await _started(MicroBatcher(square, max_wait_s=0.05))
        answers = await asyncio.gather(*(batcher.submit([i, i + 100]) for i in range(8)))
        await batcher.close()
        return answers

    assert run(main()) == [[i**2, (i + 100) ** 2] for i in range(8)]
    assert len(calls) == 1
    assert sorted(calls[0]) == sorted([*range(8), *range(100, 108)])


def test_a_batch_ends_at_its_limit_but_splits_no_request() -> None:
    sizes: list[int] = []

    async def main() -> None:
        batcher = await _started(MicroBatcher(list, max_batch=4, max_wait_s=0.02, on_batch=sizes.append))
        await asyncio.gather(*(batcher.submit([1, 2, 3]) for _ in range(4)), batcher.submit(list(range(10))))
        await batcher.close()

    run(main())
    assert sum(sizes) == 22
    assert max(sizes) <= 4 + 10 - 1
    assert len(sizes) == 3  # 3 + 3, 3 + 3, 10: a batch closes once it holds four


def test_an_error_reaches_those_who_shared_the_call_and_the_next_call_works() -> None:
    def fail_on_zero(numbers: list[int]) -> list[int]:
        if 0 in numbers:
            raise RuntimeError("zero")
        return list(numbers)

    async def main() -> list[object]:
        batcher = await _started(MicroBatcher(fail_on_zero, max_wait_s=0.02))
        first = await asyncio.gather(batcher.submit([0]), batcher.submit([1]), return_exceptions=True)
        second = await batcher.submit([2])
        await batcher.close()
        return [*first, second]

    first, other, second = run(main())  # type: ignore[misc]
    assert isinstance(first, RuntimeError)
    assert isinstance(other, RuntimeError)
    assert second == [2]


def test_closing_answers_what_is_in_flight() -> None:
    release = threading.Event()

    def slow(numbers: list[int]) -> list[int]:
        release.wait(5)
        return list(numbers)

    async def main() -> tuple[list[int], list[int]]:
        batcher = await _started(MicroBatcher(slow, max_wait_s=0.001))
        first = asyncio.create_task(batcher.submit([1]))
        await asyncio.sleep(0.05)  # the call runs
        second = asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        release.set()
        await closing
        return await first, await second

    assert run(main()) == ([1], [2])


def test_a_request_without_queries_calls_nothing() -> None:
    async def main() -> list[int]:
        batcher: MicroBatcher[int, int] = await _started(MicroBatcher(lambda _: pytest.fail("was called")))
        answers = await batcher.submit([])
        await batcher.close()
        return answers

    assert run(main()) == []


def test_requests_beyond_what_may_wait_are_refused_at_once_and_the_others_answered() -> None:
    async def main() -> list[object]:
        batcher = await _started(MicroBatcher(list, max_wait_s=0.05, max_waiting=6))
        waiting = [asyncio.create_task(batcher.submit([i, i])) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="6 queries wait already"):
            await batcher.submit([9])
        answers = await asyncio.gather(*waiting)
        longer_than_the_queue = await batcher.submit(list(range(20)))  # but nothing waits before it
        await batcher.close()
        return [*answers, longer_than_the_queue]

    assert run(main()) == [[0, 0], [1, 1], [2, 2], list(range(20))]


def test_a_request_that_waited_too_long_is_refused_and_never_computed() -> None:
    calls: list[list[int]] = []
    release = threading.Event()

    def slow(numbers: list[int]) -> list[int]:
        calls.append(list(numbers))
        release.wait(5)
        return list(numbers)

    async def main() -> tuple[list[int], object, list[int]]:
        batcher = await _started(MicroBatcher(slow, max_wait_s=0.001, patience_s=0.1))
        first = asyncio.create_task(batcher.submit([1]))
        await asyncio.sleep(0.02)  # its call runs
        second = asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0.15)
        third = asyncio.create_task(batcher.submit([3]))
        await asyncio.sleep(0)
        release.set()
        found = await asyncio.gather(first, second, third, return_exceptions=True)
        await batcher.close()
        return tuple(found)  # type: ignore[return-value]

    first, second, third = run(main())  # type: ignore[misc]
    assert (first, third) == ([1], [3])
    assert isinstance(second, Overloaded)
    assert calls == [[1], [3]]
