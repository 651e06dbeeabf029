"""Pieces on threads: order, errors, gradients' mode, and the number of threads left as it was."""

import threading

import pytest
import torch

from assimilate.filters.threads import in_threads

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_in_order_and_settings_left_alone(threads):
    seen = []

    def piece(k):
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
        return k * k

    with torch.no_grad():
        assert in_threads(piece, range(20), CPU) == [k * k for k in range(20)]
    assert set(seen) == {(1, False)}
    assert torch.get_num_threads() == threads
    later = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert later == [threads]
    assert in_threads(piece, [], CPU) == []


def test_pieces_are_on_several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        meeting = threading.Barrier(2, timeout=20)
        # Each piece waits for the other: one thread alone would not get past it.
        assert in_threads(lambda k: meeting.wait() >= 0 and k, [1, 2], CPU) == [1, 2]
    finally:
        torch.set_num_threads(before)


def test_the_first_error_is_raised(threads):
    def piece(k):
        if k == 3:
            raise ValueError("piece 3")
        return k

    with pytest.raises(ValueError, match="piece 3"):
        in_threads(piece, range(6), CPU)
    assert torch.get_num_threads() == threads
