import threading
import time

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response

from cellvit.errors import ConfigError
from cellvit.viewer.requests import filter_of, in_thread


def request(query=b"", messages=()):
    queue = list(messages)

    async def receive():
        if queue:
            return queue.pop(0)
        return await anyio.sleep_forever()

    return Request({"type": "http", "method": "GET", "query_string": query, "headers": [], "path": "/"}, receive)


def test_a_hundred_requests_share_a_few_threads():
    running, most, lock = [0], [0], threading.Lock()

    def handle(asked):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.001)
        with lock:
            running[0] -= 1
        return Response(b"x")

    answers = []

    async def ask(endpoint):
        answers.append((await endpoint(request())).status_code)

    async def all_of_them():
        endpoint = in_thread(handle, anyio.CapacityLimiter(3))
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(ask, endpoint)

    anyio.run(all_of_them)
    assert answers == [200] * 100
    assert most[0] <= 3


def test_nothing_is_done_for_a_client_that_has_gone():
    done = []
    endpoint = in_thread(lambda asked: done.append(1) or Response(), anyio.CapacityLimiter(1))
    gone = request(messages=[{"type": "http.disconnect"}])
    assert anyio.run(endpoint, gone).status_code == 499
    assert not done


def test_a_filter_of_the_query():
    found = filter_of(request(b"classes=1,2&min_prob=.5&area_um2.max=9&type_prob.max=.9&region=9,8,1,2"))
    assert found.classes == {1, 2}
    assert found.ranges == {"area_um2": (None, 9.0), "type_prob": (0.5, 0.9)}
    assert found.area.bounds == (1, 2, 9, 8)
    bow = filter_of(request(b"polygon=0,0,4,4,4,0,0,4")).area
    assert bow.is_valid  # also of a line that crosses itself
    assert bow.area == pytest.approx(8)
    with pytest.raises(ConfigError, match="no number"):
        filter_of(request(b"area_um2.min=inf"))
