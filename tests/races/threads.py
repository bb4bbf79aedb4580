"""Python threads that step, call and train one module at once, for ThreadSanitizer.

Their calls run on one thread each: ThreadSanitizer cannot follow those of torch's pool.
"""

import threading

import torch

import rnnext

torch.set_num_threads(1)
rnn = rnnext.RNN(32, 64)


def steps():
    stepper = rnnext.Stepper(rnn, batch_size=4)
    for _ in range(200):
        stepper(torch.ones(4, 32))


def calls():
    with torch.no_grad():
        for _ in range(20):
            rnn(torch.ones(300, 64, 32))  # 4.7 MiB of results come from the pool, and go back


def training():
    for _ in range(10):
        rnn(torch.ones(300, 64, 32))[0].sum().backward()


threads = [threading.Thread(target=run) for run in 2 * (steps, calls, training)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
