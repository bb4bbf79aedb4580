"""What training loops put around a model: scalers, loaders."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import rnnext
from helpers.common import assert_close

TOKENS, LABELS = torch.randint(9, (6, 7, 8)), torch.randint(3, (6, 8))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 5)
        self.rnn = nn.RNN(5, 6, 2)
        self.cell = nn.RNNCell(6, 4)
        self.score = nn.Linear(4, 3)

    def forward(self, tokens):
        return self.score(self.cell(self.rnn(self.embedding(tokens))[0][-1]))


def both():
    """torch.nn's model, and ours with the same weights."""
    model = Classifier()
    return model, rnnext.convert(copy.deepcopy(model))


def loss_of(model, step):
    return nn.functional.cross_entropy(model(TOKENS[step]), LABELS[step])


def test_grad_scaler_and_autocast():
    """Also a step whose gradients overflow, which the scaler leaves out."""
    trained = []
    for model in both():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
        for step in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, step)
            scaler.scale(loss * (float("inf") if step == 2 else 1)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**13
        assert all(p.dtype == torch.float32 for p in model.parameters())
        trained.append(list(model.parameters()))
    assert_close(trained[1], trained[0], dtype=torch.bfloat16)


class Encoded(Dataset):
    """Sequences that an RNN and a Stepper encode where they are loaded."""

    def __init__(self, model):
        self.model, self.cell = model, rnnext.Stepper(model.cell)
        self.rows = TOKENS.transpose(1, 2).flatten(0, 1)

    def __len__(self):
        return len(self.rows)

    @torch.no_grad()
    def __getitem__(self, number):
        model = self.model
        output, _ = model.rnn(model.embedding(self.rows[number]))
        self.cell.reset()
        return model.score(self.cell(output[-1]))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(start):
    """Also in children of a process whose threads have run."""
    model = rnnext.convert(Classifier()).eval()
    with torch.no_grad():
        expected = torch.cat([model(tokens) for tokens in TOKENS])
    loader = DataLoader(
        Encoded(model), batch_size=5, num_workers=2, multiprocessing_context=start, timeout=300
    )
    assert_close(torch.cat(list(loader)), expected)
