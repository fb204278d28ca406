"""What several processes share: rows, gradients through the gather, weights of uneven shares."""

import threading
from types import SimpleNamespace

import pytest
import torch

from models.contrastive import LogitScale, info_nce
from tests.processes import ended, started
from utils import processes
from utils.device import end_processes, start_accelerator
from utils.processes import Processes, dealt, gathered, mean_over, part, share, weight_by


def process(rank: int, n: int) -> SimpleNamespace:
    return SimpleNamespace(process_index=rank, num_processes=n)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_row_is_had_once_at_any_count(processes):
    for n in range(1, 14):
        rows = list(range(n))
        shares = [share(process(rank, processes), rows, 2 if n > 1 else 1) for rank in range(processes)]
        assert len(set(map(len, shares))) == 1 and min(map(len, shares)) >= min(n, 2)
        in_order = [own[k] for k in range(len(shares[0])) for own in shares]  # as `gathered` puts them
        assert in_order[:n] == rows
        parts = [part(process(rank, processes), torch.tensor(rows)) for rank in range(processes)]
        assert sorted(k for own, weight in parts if weight for k in own.tolist()) == rows
        means = [weight * own.double().mean() for own, weight in parts]  # of a loss that is the row's number
        assert float(sum(means)) / processes == pytest.approx(sum(rows) / n)
    assert share(process(0, processes), []) == []


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_deals_out_every_item_once_in_the_order_of_one_process(processes):
    def epoch(n: int, rank: int, of: int, size: int) -> list:
        where = SimpleNamespace(process_index=rank, num_processes=of, device=torch.device("cpu"))
        loader = dealt(where, list(range(n)), size, 5, lambda items: {"rows": torch.tensor(items)})
        loader.set_epoch(2)
        return [batch["rows"].tolist() if batch["weight"] else [] for batch in loader]

    for n in range(1, 14):
        alone = epoch(n, 0, 1, 2 * processes)
        assert sorted(sum(alone, [])) == list(range(n))
        together = zip(*(epoch(n, rank, processes, 2) for rank in range(processes)), strict=True)
        for batch, parts in zip(alone, together, strict=True):
            assert list(parts) == [batch[rank::processes] for rank in range(processes)]


class Encoder(torch.nn.Module):
    """What an encoder of seen images is to DDP: its scale stands beside `forward`, and some weights nothing reads."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale, self.idle = torch.nn.Linear(6, 4), LogitScale(), torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


def steps(accelerator) -> dict:
    """Two steps of gradient descent on whole batches of 7, of the rows that this process has."""
    torch.manual_seed(0)
    x, targets, images = torch.randn(2, 7, 6), torch.randn(2, 7, 4), torch.tensor([0, 1, 2, 0, 3, 4, 1])
    plain = Encoder()
    model, optimizer, losses = accelerator.prepare(plain), torch.optim.SGD(plain.parameters(), 0.1), []
    for k in range(2):
        own = share(accelerator, range(7))
        output, target, image = (
            gathered(accelerator, rows)[:7] for rows in (model(x[k][own]), targets[k][own], images[own])
        )
        assert torch.equal(target, targets[k]) and torch.equal(image, images)
        loss = info_nce(output, target, plain.scale(), image)
        optimizer.zero_grad()
        loss.backward()
        losses.append(mean_over(accelerator, float(loss.detach())))
        gradients = {name: p.grad.clone() for name, p in plain.named_parameters() if "idle" not in name}
        optimizer.step()
    return {"losses": losses} | gradients


def test_the_gradient_of_a_contrastive_loss_through_the_gather_is_that_of_one_process(tmp_path):
    def work(rank: int) -> None:
        accelerator, _ = start_accelerator(-1, "fp32", 1, 0, static_graph=True)
        found = steps(accelerator)
        torch.save(found, tmp_path / f"{rank}.pt")
        end_processes(accelerator)

    assert ended(started(2, work, tmp_path / "log")) == [0, 0], (tmp_path / "log").read_text()
    alone = steps(SimpleNamespace(num_processes=1, process_index=0, prepare=lambda model: model, device="cpu",
                                  reduce=lambda value, how: value))  # fmt: skip
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        for name in ("linear.weight", "linear.bias", "scale.logarithm"):  # of the second step: the first one was right
            assert torch.allclose(found[name], alone[name], rtol=1e-5, atol=1e-7), name


def test_a_mean_over_what_each_has_counted_is_weighted_to_the_mean_over_all(tmp_path):
    values = [torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([10.0])]  # one process's tokens, and the other's

    def work(rank: int) -> None:
        accelerator, _ = start_accelerator(-1, "fp32", 1, 0)
        for name, weights in (("both", (1.0, 1.0)), ("first", (2.0, 0.0))):  # 0: a row of another, for nothing
            counted = torch.ones_like(values[rank], dtype=torch.bool)
            mean = weight_by(accelerator, counted, weights[rank]) * values[rank].mean()
            mean = mean_over(accelerator, float(mean))
            torch.save(mean, tmp_path / f"{name}{rank}.pt")
        end_processes(accelerator)

    assert ended(started(2, work, tmp_path / "log")) == [0, 0], (tmp_path / "log").read_text()
    assert [torch.load(tmp_path / f"{name}1.pt") for name in ("both", "first")] == pytest.approx([25 / 6, 3.0])
    assert weight_by(process(0, 1), torch.ones(3), 1.0) == 1.0


# ---------------------------------------------------------------- shares, of threads whose messages go through a list

CPU = torch.device("cpu")


@pytest.fixture
def of_all(monkeypatch):
    """Run `work(processes)` as each of `n` processes; their results, by number."""

    def run(n, work):
        meeting, said, results, mine = threading.Barrier(n, timeout=10), [None] * n, [None] * n, threading.local()

        def gather(items):
            said[mine.index] = items
            meeting.wait()
            everything = [item for items in said for item in items]
            meeting.wait()
            return everything

        monkeypatch.setattr(processes, "gather_object", gather)
        monkeypatch.setattr(processes, "broadcast_object_list", lambda items: gather(items)[:1])

        def one(index):
            mine.index = index
            results[index] = work(Processes(CPU, index, n))

        threads = [threading.Thread(target=one, args=(index,)) for index in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("n_items, size", [(0, 3), (1, 3), (2, 1), (7, 1), (7, 3), (12, 3)])
def test_blocks_are_the_same_for_any_number_of_processes_and_none_is_done_twice(of_all, n, n_items, size):
    items, done = list(range(n_items)), []

    def tenfold(block):
        done.append(block)
        return [10 * item for item in block]

    blocks = [items[k : k + size] for k in range(0, n_items, size)]
    results = of_all(n, lambda mine: mine.each(tenfold, items, size))
    assert results == [[[10 * item for item in block] for block in blocks]] * n and sorted(done) == blocks


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shares_are_parts_of_what_the_first_process_lists(of_all, n):
    """Another one may have looked a moment later, and found less to do."""
    for n_items in (0, 1, 4, 9):
        shares = of_all(n, lambda mine, k=n_items: mine.share(range(k if mine.first else k // 2)))
        assert sorted(item for share in shares for item in share) == list(range(n_items))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert of_all(n, lambda mine: mine.gathered([mine.index])) == [list(range(n))] * n
