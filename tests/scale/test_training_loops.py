import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import rnnext
from helpers.common import assert_close, same

TOKENS, LABELS = torch.randint(9, (6, 7, 8)), torch.randint(4, (6, 8))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.embedding, self.rnn = nn.Embedding(9, 5), nn.RNN(5, 6, 2)
        self.cell = nn.RNNCell(6, 4)

    def forward(self, tokens):
        return self.cell(self.rnn(self.embedding(tokens))[0][-1])


def test_grad_scaler_and_autocast():
    """Also a step whose gradients overflow, which the scaler leaves out."""
    trained = []
    for model in (Classifier(), rnnext.convert(Classifier())):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
        for step in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(TOKENS[step]), LABELS[step])
            scaler.scale(loss * (float("inf") if step == 2 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**13
        trained.append(list(model.parameters()))
    assert_close(trained[1], trained[0], dtype=torch.bfloat16)


class Encoder:
    """A model, and a Stepper over what it gives."""

    def __init__(self):
        self.model = rnnext.convert(Classifier()).requires_grad_(False)
        self.stepper = rnnext.Stepper(rnnext.RNNCell(4, 4), batch_size=8)

    def __call__(self, tokens):
        self.stepper.reset()
        return self.stepper(self.model(tokens))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(start):
    """Also in children of a process whose threads have run."""
    encode = Encoder()
    expected = [encode(tokens) for tokens in TOKENS]
    options = {"num_workers": 2, "multiprocessing_context": start, "timeout": 300}
    assert same(DataLoader(TOKENS, None, collate_fn=encode, **options), expected)
