"""What is timed, on events whose times are known."""

import torch

from bench import clock
from bench.gpu.stand_in import Graph, stand_in


class Device:
    """A device whose calls take as long as they are told, and a host that takes no time."""

    def __init__(self, monkeypatch, milliseconds):
        self.now, self.asleep, self.flushed = 0.0, 0, 0
        times = iter(milliseconds)

        class Event:
            def __init__(event, enable_timing):
                assert enable_timing

            def record(event):
                event.at = self.now

            def elapsed_time(event, end):
                return end.at - event.at

        def sleep(cycles):
            self.asleep += 1
            self.now += 1000.0  # which no event may see

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        self.call = lambda: setattr(self, "now", self.now + next(times))


def test_median_of_what_lies_between_the_events(monkeypatch):
    with stand_in():
        monkeypatch.setattr(clock, "MAX_REPEATS", 5)
        # One call to see how long it takes, four for the host's time, then those that count.
        device = Device(monkeypatch, [50.0] * 5 + [4.0, 1.0, 3.0, 2.0, 100.0])
        timing = clock.measure(device.call)
    assert timing.milliseconds == 3.0
    assert timing.spread == 2.0
    assert device.asleep == 5
    assert 0 < timing.host_microseconds < 1000


def test_a_graph_of_the_stand_in_replays(monkeypatch):
    x = torch.arange(4.0)
    with stand_in():
        graph = torch.cuda.CUDAGraph()
        assert isinstance(graph, Graph)
        with torch.cuda.graph(graph):
            doubled = x * 2
            result = doubled + 1
        x += 10
        torch.testing.assert_close(result, torch.tensor([1.0, 3.0, 5.0, 7.0]))
        graph.replay()
    torch.testing.assert_close(result, 2 * x + 1)
