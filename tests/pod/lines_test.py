"""Who has come, who has not, and who can't: told within the limit, to everybody who has come."""

import socket
import threading
import time

import pytest

from internvl_jax.errors import InputError
from internvl_jax.pod import lines
from tests.training.lives import free_port


def started(port, calls, processes, seconds):
    """What `gather` and every `call` (number, processes) came to: the lines, or the sentence."""
    found = {}

    def run(key, function, *args):
        try:
            found[key] = function(*args, seconds)
        except InputError as error:
            found[key] = str(error)

    threads = [threading.Thread(target=run, args=(0, lines.gather, port, processes))] if processes else []
    threads += [threading.Thread(target=run, args=(call, lines.call, "127.0.0.1", port, *call)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_come_and_hear_each_other():
    found = started(free_port(), [(1, 3), (2, 3)], 3, 9)
    assert sorted(found[0]) == [1, 2]
    found[0][2].send({"to": 2})
    assert found[2, 3].read() == [{"to": 2}]
    found[1, 3].send({"from": 1})
    found[1, 3].send({"more": 1})
    found[1, 3].close()
    heard = []
    while (part := found[0][1].read()) is not None:
        heard += part
    assert heard == [{"from": 1}, {"more": 1}]
    for line in (*found[0].values(), found[2, 3]):
        line.close()


def test_who_is_missing_is_named_to_all():
    found = started(free_port(), [(2, 4)], 4, 0.4)
    for said in found.values():
        assert said.startswith("process 1, 3 of 4 has not come within 0.4 s (come: 0, 2)")


def test_one_that_died_while_it_waited_is_missing():
    port, found = free_port(), {}
    thread = threading.Thread(target=lambda: found.update(started(port, [], 3, 1.0)))
    thread.start()
    dead = connect(port)
    dead.sendall(b'{"process": 1, "processes": 3}\n')
    dead.close()
    thread.join()
    assert found[0].startswith("process 1, 2 of 3 has not come within 1 s (come: 0)")


def test_process_0_is_missing():
    (said,) = started(free_port(), [(1, 2)], 0, 0.3).values()
    assert "process 0 can't be reached at 127.0.0.1:" in said and "for 0.3 s" in said


@pytest.mark.parametrize(
    ("call", "sentence"),
    [((1, 2), "process 1 counts 2 processes, process 0 counts 3"), ((0, 3), "a second process calls itself 0")],
)
def test_who_does_not_fit_is_told(call, sentence):
    found = started(free_port(), [call], 3, 0.4)
    assert found[call].startswith(sentence)
    assert found[0].startswith("process 1, 2 of 3 has not come")


def test_the_same_number_twice_and_strangers_and_the_dead():
    port, found = free_port(), {}

    def gather():
        found[0] = lines.gather(port, 3, 20)

    thread = threading.Thread(target=gather)
    thread.start()
    dead = connect(port)
    dead.sendall(b'{"process": 1, "processes": 3}\n')
    dead.close()
    stranger = connect(port)
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    first = connect(port)
    first.sendall(b'{"process": 2, "processes": 3}\n')
    with pytest.raises(InputError, match="two processes call themselves 2"):
        lines.call("127.0.0.1", port, 2, 3, 5)
    second = lines.call("127.0.0.1", port, 1, 3, 5)  # takes the place of the one that died
    thread.join()
    assert sorted(found[0]) == [1, 2] and stranger.recv(9) == b""
    for each in (stranger, first, second, *found[0].values()):
        each.close()


def connect(port):
    ends = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < ends
