import threading

from cellvit.viewer.cache import BoundedCache


def test_what_was_used_last_is_kept_within_the_bound():
    cache, made = BoundedCache(10, len), []

    def value(text):
        def make():
            made.append(text)
            return text

        return cache.get(text[0], make)

    assert [value(text) for text in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb")]
    assert made == ["aaaa", "bbbb", "cccc", "bbbb"]
    assert value("d" * 40) == "d" * 40  # larger than all: the only one that is kept
    value("d" * 40)
    value("aaaa")
    assert made[4:] == ["d" * 40, "aaaa"]


def test_threads_that_want_the_same_wait_for_one_that_makes_it():
    cache, made, start = BoundedCache(10, len), [], threading.Barrier(4)

    def make():
        made.append(1)
        start_of_others.wait(5)
        return "a"

    start_of_others = threading.Event()

    def ask():
        start.wait()
        cache.get("a", make)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    start_of_others.set()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_a_value_that_cannot_be_made_is_tried_again():
    cache = BoundedCache(10, len)
    for _ in range(2):
        try:
            cache.get("a", lambda: 1 / 0)
        except ZeroDivisionError:
            continue
        raise AssertionError
    assert cache.get("a", lambda: "a") == "a"
