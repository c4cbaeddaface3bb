"""Pages: nobody's pages are never lost nor given twice, and what is found is what was named."""

import numpy as np

from internvl_jax.inference.engine.page_pool import PagePool, page_names

SIZE = 4


def keys(*parts):
    return np.concatenate([np.arange(part, part + SIZE, dtype=np.int64) for part in parts])


def held(pool, *parts):
    """Somebody who holds these parts, a page each, and has named them."""
    names = page_names(keys(*parts), SIZE)
    shared = pool.find(names)
    pool.share(shared)
    pages = shared + pool.take(len(parts) - len(shared))
    for page, name in zip(pages, names, strict=True):
        pool.name(page, name)
    return pages


def test_a_name_says_what_stands_before():
    first, second = page_names(keys(1, 2, 3), SIZE), page_names(keys(5, 2, 3), SIZE)
    assert len(set(first + second)) == 6
    assert page_names(keys(1, 2, 9)[:-1], SIZE) == first[:2] and page_names(keys(1)[:3], SIZE) == []


def test_those_that_begin_alike_share_until_the_last_one_leaves():
    pool = PagePool(6)
    a, b = held(pool, 1, 2, 3), held(pool, 1, 2, 4)
    assert a[:2] == b[:2] and a[2] != b[2] and pool.available == 2
    pool.give_back(a)
    assert pool.available == 3 and pool.find(page_names(keys(1, 2, 3), SIZE)) == a
    pool.give_back(b)
    assert pool.available == 6 and held(pool, 1, 2, 4) == b


def test_what_was_left_first_goes_first_and_of_a_row_the_end():
    pool = PagePool(6)
    old, new = held(pool, 1, 2, 3), held(pool, 5, 6, 7)
    pool.give_back(old)
    pool.give_back(new)
    names = page_names(keys(1, 2, 3), SIZE)
    assert pool.room(pool.find(names[:2])) == 4
    (taken,) = pool.take(1)
    assert taken == old[2] and pool.find(names) == old[:2]
    pool.give_back([taken])
    assert pool.find(names) == old[:2]  # nothing is in it
    pool.share(old[:2])  # used again: the other row has become the oldest
    pool.give_back(old[:2])
    assert set(pool.take(4)) == {taken, *new} and pool.find(names) == old[:2]


def test_of_two_that_hold_the_same_the_first_is_found():
    pool = PagePool(4)
    (first,), (second,) = pool.take(1), pool.take(1)
    (name,) = page_names(keys(1), SIZE)
    for page in (first, second):
        pool.name(page, name)
    pool.give_back([first])
    pool.give_back([second])
    assert pool.find([name]) == [first]
    assert set(pool.take(4)) == {0, 1, 2, 3} and pool.find([name]) == []


def test_what_is_forgotten_is_not_found_and_not_lost():
    pool = PagePool(5)
    pages, other = held(pool, 1, 2), held(pool, 3)
    pool.give_back(other)
    pool.forget()
    assert pool.find(page_names(keys(1, 2), SIZE)) == [] and pool.available == 3
    pool.give_back(pages)
    assert pool.available == 5


def test_at_random():
    """Against who has what, written down beside it."""
    rng, pool, rows = np.random.default_rng(0), PagePool(12), []
    for _ in range(3000):
        if rows and rng.random() < 0.5:
            pool.give_back(rows.pop(int(rng.integers(len(rows)))))
        else:
            parts = [int(rng.integers(3)) for _ in range(rng.integers(1, 5))]
            shared = pool.find(page_names(keys(*parts), SIZE))
            if pool.room(shared) >= len(parts) - len(shared):
                rows.append(held(pool, *parts))
        if rng.random() < 0.01:
            pool.forget()
        users = {page for row in rows for page in row}
        assert pool.available == 12 - len(users)
        assert all(len(set(row)) == len(row) for row in rows)
    for row in rows:
        pool.give_back(row)
    assert pool.available == 12 and set(pool.take(12)) == set(range(12))
