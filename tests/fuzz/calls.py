"""Calls made from plain values, each compared with loops in float64; test_calls draws them."""

import copy
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import reference
import rnnext
from fuzz.compare import arranged, compare, dtype_of, stored_of, uniform, unit_of
from helpers import samples
from helpers.common import same
from rnnext import embedding_rnn, stepper

NAMES = {"elman": "rnn", "gru": "gru", "lstm": "lstm"}  # of modules and functions


def check_recurrence(case):
    """One layer by its op: features, precomputed inputs or a table; any directions and rows."""
    names = (
        "T", "B", "I", "H", "source", "nonlinearity", "bias", "hx", "rows", "cell", "reset",
        "noise",
    )  # fmt: skip
    made = samples.make(
        **{name: case[name] for name in names},
        reverse=tuple(map(bool, case["reverse"])),
        dtype=dtype_of(case),
        index_dtype=getattr(torch, case["index_dtype"]),
    )

    def ours(*tensors):
        values = made.with_tensors(tensors).call(torch.ops.rnnext.recurrence)
        assert all(v.is_contiguous() for v in values)
        return values

    def theirs(*tensors):
        return made.with_tensors(tensors).expected(stored_of(case))

    compare(case, [arranged(t, case["layout"]) for t in made.float_tensors()], ours, theirs)


def check_function(case):
    """One layer and direction by its function, with what it takes in several forms."""
    T, B, I, H = (case[letter] for letter in "TBIH")  # noqa: E741
    bound, given = max(H, 1) ** -0.5, {name: case[name] for name in ("nonlinearity", "form")}
    leaves = {"weight_hh": uniform(case, H, H, bound=bound)}
    leaves["input"] = arranged(uniform(case, T, B, I if case["weight_ih"] else H), case["layout"])
    if case["weight_ih"]:
        leaves["weight_ih"] = arranged(uniform(case, H, I, bound=bound), case["layout"])
    if case["hx"]:
        leaves["hx"] = arranged(uniform(case, B, H), case["layout"])
    for name in ("bias_ih", "bias_hh"):
        if case["bias"] in (name, "both"):
            leaves[name] = uniform(case, H, bound=bound)
    alpha = {"scalar": [], "unit": [H]}.get(case["alpha"])
    if alpha is not None:
        leaves["alpha"] = uniform(case, *alpha, bound=0.4) + 0.5
    reset = torch.rand(T, B) < 0.3 if case["reset"] else None
    if case["reset"] in ("shared", "each"):
        leaves["reset_state"] = uniform(case, *([B] if case["reset"] == "each" else []), H)
    lengths = torch.randint(T + 1, (B,)) if case["lengths"] else None

    def ours(*tensors):
        own = {"hx": None, "weight_ih": None} | dict(zip(leaves, tensors, strict=True)) | given
        own |= {"reverse": case["reverse"], "batch_first": case["batch_first"]}
        own |= {"alpha": 0.25} if case["alpha"] == "number" else {}
        if case["alpha"] is None:
            del own["form"]  # refused without a leak
        own |= {"lengths": lengths, "reset": reset}
        if case["batch_first"]:
            own |= {k: own[k].transpose(0, 1) for k in ("input", "reset") if own[k] is not None}
        output, h_n = rnnext.functional.recurrence(**own)
        return output.transpose(0, 1) if case["batch_first"] else output, h_n

    def theirs(*tensors):
        own = dict(zip(leaves, tensors, strict=True))
        alphas = [own["alpha"].expand(H)] if "alpha" in own else []
        alphas = [own["input"].new_full((H,), 0.25)] if case["alpha"] == "number" else alphas
        biases = [own[name] for name in ("bias_ih", "bias_hh") if name in own]
        biases = [[sum(biases)], [torch.zeros_like(biases[0])]] if biases else [[], []]
        states = [own.get("hx"), own.get("reset_state")]
        states = [None if s is None else s.expand(1, B, H) for s in states]
        weights = [[own["weight_ih"]] if case["weight_ih"] else [], [own["weight_hh"]]]
        output, h_n = reference.recurrence(
            own["input"], states[0], *weights, *biases, None, lengths, None, reset, states[1],
            alphas, given["form"] if alphas else "elman", given["nonlinearity"], [case["reverse"]],
            stored_of(case),
        )  # fmt: skip
        return output, h_n[0]

    compare(case, list(leaves.values()), ours, theirs)


def module_of(case):
    """An RNN of any cell, LeakyRNN or EmbeddingRNN; of functions, the RNN with their weights."""
    options = {k: case[k] for k in ("bias", "batch_first", "bidirectional", "nonlinearity")}
    options |= {"num_layers": case["layers"], "dtype": dtype_of(case)}
    if case["module"] == "EmbeddingRNN":
        options |= {"padding_idx": case["padding_idx"], "cell": NAMES[case["cell"]]}
        return rnnext.EmbeddingRNN(case["vocabulary"], case["I"], case["H"], **options)
    if case["module"] in ("RNN", "functional"):
        kind = options.pop("nonlinearity")
        module = getattr(rnnext, NAMES[case["cell"]].upper())(case["I"], case["H"], **options)
        if case["cell"] in reference.GATES:
            return module
        module.mode, module.nonlinearity = "RNN_RELU" if kind == "relu" else "RNN_TANH", kind
        return module
    alpha = torch.rand([case["H"]] if "unit" in case["alpha"] else []) * 0.8 + 0.1
    options |= {"alpha": 1.0 if case["alpha"] == "one" else alpha, "form": case["form"]}
    options["learn_alpha"] = "learned" in case["alpha"]
    return rnnext.LeakyRNN(case["I"], case["H"], **options)


def paired(case, states):
    """The states of all layers as modules take them: of an LSTM a pair."""
    return tuple(states.chunk(2)) if case["cell"] == "lstm" and states is not None else states


def joined(states):
    return torch.cat(states) if isinstance(states, tuple) else states


def layers_by_reference(case, rnn, weights, x, lengths, reset, hx, reset_state):
    """All layers with these weights, by name, over a sequence that has time first."""
    D, states = 2 if case["bidirectional"] else 1, []
    parts = reference.STATES.get(case["cell"], 1)
    hx, reset_state = (s if s is None else s.unflatten(0, (parts, -1)) for s in (hx, reset_state))
    for k in range(case["layers"]):
        suffixes = [f"_l{k}", f"_l{k}_reverse"][:D]
        own = [
            [weights[name + suffix] for suffix in suffixes if name + suffix in weights]
            for name in (*samples.WEIGHTS, "logit_alpha")
        ]
        alphas = [logit.sigmoid() for logit in own.pop()]
        if case["module"] == "LeakyRNN" and not alphas:
            alphas = [rnn.alpha.double()] * D
        layer = slice(k * D, k * D + D)
        starts = [None if s is None else s[:, layer].flatten(0, 1) for s in (hx, reset_state)]
        if starts[1] is not None and starts[1].dim() == 2:
            starts[1] = starts[1].unsqueeze(1).expand(parts * D, x.shape[1], case["H"])
        x, h_n = reference.recurrence(
            x, starts[0], *own, None, lengths, None, reset, starts[1],
            [alpha.expand(case["H"]) for alpha in alphas], getattr(rnn, "form", case["cell"]),
            case["nonlinearity"], [False, True][:D], stored_of(case),
        )  # fmt: skip
        states.append(h_n.unflatten(0, (parts, -1)))
    return x, torch.cat(states, 1).flatten(0, 1)


def check_layers(case):
    """A module on whole sequences: batched, one alone, shortened or packed."""
    T, B, I, H = (case[letter] for letter in "TBIH")  # noqa: E741
    module, rows, first = module_of(case), case["rows"], case["batch_first"]
    S, of_tokens = case["layers"] * (2 if case["bidirectional"] else 1), "Emb" in case["module"]
    S *= reference.STATES.get(case["cell"], 1)
    lengths = torch.tensor([case["lengths"][b % len(case["lengths"])] % (T + 1) for b in range(B)])
    lengths = lengths.long().clamp_min(int(rows == "packed"))
    leaves = dict(module.named_parameters())
    tokens = torch.randint(case["vocabulary"], (T, B)).to(getattr(torch, case["index_dtype"]))
    if not of_tokens:
        leaves["input"] = arranged(uniform(case, T, B, I), case["layout"])
    if case["hx"]:
        leaves["hx"] = arranged(uniform(case, S, B, H), case["layout"])
    reset = torch.rand(T, B) < 0.3 if case["reset"] else None
    if case["reset"] in ("shared", "each"):
        leaves["reset_state"] = uniform(case, S, *([B] if case["reset"] == "each" else []), H)

    def ours(*tensors):
        given = dict(zip(leaves, tensors, strict=True))
        own = {name: given.pop(name) for name, _ in module.named_parameters()}
        x, given["reset"] = given.pop("input", tokens), reset
        if rows == "single":
            x, kept = x[:, 0], {"reset_state"} if case["reset"] == "shared" else set()
            given = {k: v if v is None or k in kept else v[:, 0] for k, v in given.items()}
        elif first:
            x, given["reset"] = x.transpose(0, 1), None if reset is None else reset.t()
        given |= {name: paired(case, given.get(name)) for name in ("hx", "reset_state")}
        if rows == "packed":
            x = pack_padded_sequence(x, lengths, first, enforce_sorted=False)
        elif rows == "lengths":
            given["lengths"] = lengths if case["seed"] % 2 else lengths.tolist()
        if case["module"] == "functional":
            function = getattr(rnnext.functional, NAMES[case["cell"]])
            options = {name: case[name] for name in ("bidirectional", "batch_first")}
            if case["cell"] == "elman":
                options["nonlinearity"] = case["nonlinearity"]
            output, h_n = function(x, weights=own.values(), **given, **options)
        else:
            output, h_n = torch.func.functional_call(module, own, (x,), given)
        h_n = joined(h_n)
        if rows == "packed":
            return output.data, h_n
        return output.transpose(0, 1) if first and rows != "single" else output, h_n

    def theirs(*tensors):
        named = {k.removeprefix("rnn."): v for k, v in zip(leaves, tensors, strict=True)}
        x = named.get("input")
        if of_tokens:
            x = F.embedding(tokens, named["embedding.weight"], case["padding_idx"])
        until = lengths if rows in ("lengths", "packed") else None
        states = named.get("hx"), named.get("reset_state")
        output, h_n = layers_by_reference(case, module, named, x, until, reset, *states)
        if rows == "packed":
            return pack_padded_sequence(output, lengths, enforce_sorted=False).data, h_n
        return (output[:, 0], h_n[:, 0]) if rows == "single" else (output, h_n)

    compare(case, list(leaves.values()), ours, theirs)
    if case["module"] == "RNN" and rows != "lengths" and reset is None and not stored_of(case):
        check_reference(case, module, leaves, theirs, lengths)


@torch.no_grad()
def check_reference(case, module, leaves, theirs, lengths):
    """The reference agrees with torch.nn in float64."""
    doubles = {name: leaf.double() for name, leaf in leaves.items()}
    twin, x, hx = rnnext.revert(module).double(), doubles["input"], doubles.get("hx")
    assert type(twin) is getattr(nn, NAMES[case["cell"]].upper())
    twin.batch_first = False
    if case["rows"] == "single":
        x, hx = x[:, 0], None if hx is None else hx[:, 0]
    elif case["rows"] == "packed":
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, h_n = twin(x, paired(case, hx))
    expected = theirs(*doubles.values())
    torch.testing.assert_close((getattr(output, "data", output), joined(h_n)), expected)


def check_cell(case):
    """One step of several rows or of one, with both biases, either or none."""
    rows, cell = [] if case["rows"] == "single" else [case["B"]], case["cell"]
    I, H, bound = case["I"], case["H"], max(case["H"], 1) ** -0.5  # noqa: E741
    n, K = rows[0] if rows else 1, reference.GATES.get(cell, 1) * H
    states = reference.STATES.get(cell, 1)
    leaves = {"input": uniform(case, *rows, I), "hx": uniform(case, states, *rows, H)}
    leaves |= {"weight_ih": uniform(case, K, I, bound=bound)}
    leaves |= {"weight_hh": uniform(case, K, H, bound=bound)}
    leaves |= {name: uniform(case, K, bound=bound) for name in ("bias_ih", "bias_hh")}
    absent = {name for name in ("bias_ih", "bias_hh") if case["bias"] not in (name, "both")}
    absent |= set() if case["hx"] else {"hx"}
    leaves = {name: arranged(t, case["layout"]) for name, t in leaves.items() if name not in absent}

    def ours(*tensors):
        named = {"hx": None} | dict(zip(leaves, tensors, strict=True))
        if case["hx"]:
            named["hx"] = tuple(named["hx"]) if cell == "lstm" else named["hx"][0]
        if cell == "elman":
            named["nonlinearity"] = case["nonlinearity"]
        after = getattr(rnnext.functional, f"{NAMES[cell]}_cell")(**named)
        return list(after) if cell == "lstm" else [after]

    def theirs(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        lists = [[named[name]] if name in named else [] for name in samples.WEIGHTS]
        hx = named["hx"].reshape(states, n, H) if case["hx"] else None
        _, after = reference.recurrence(
            named["input"].reshape(1, n, I), hx, *lists, None, None, None, None, None, [], cell,
            case["nonlinearity"], [False], stored_of(case),
        )  # fmt: skip
        return [state.reshape(*rows, H) for state in after]

    compare(case, list(leaves.values()), ours, theirs)


def check_embedding(case):
    """The gather, the gradient of its table, dense or sparse, and the norm that is bounded."""
    indices = torch.randint(case["vocabulary"], (case["T"], case["B"], 2)[: case["rank"]])
    indices = arranged(indices.to(getattr(torch, case["index_dtype"])), case["layout"])
    table = arranged(uniform(case, case["vocabulary"], case["I"]), case["layout"])
    options = {"padding_idx": case["padding_idx"], "scale_grad_by_freq": case["by_freq"]}
    if case["padding_idx"] is not None:
        options["padding_idx"] = case["padding_idx"] % (2 * len(table)) - len(table)
    bounded = {"max_norm": case["max_norm"], "norm_type": case["norm_type"]}
    tables = table.contiguous().clone(), table.double().contiguous().clone()
    rows = rnnext.functional.embedding(indices, tables[0], **bounded)
    expected = F.embedding(indices.contiguous(), tables[1], **bounded)
    tolerance = {"rtol": 64 * unit_of(case), "atol": 2**-24}
    found = tables[0].double(), rows.double()
    torch.testing.assert_close(found, (tables[1], expected), **tolerance)

    def ours(weight):
        return [rnnext.functional.embedding(indices, weight, **options, sparse=case["sparse"])]

    def theirs(weight):
        return [F.embedding(indices, weight, **options)]

    compare(case, [table], ours, theirs)


def stepped_in_any_way(case, stepper, x, way, reset, start):
    """A step taken in one of test_calls.WAYS, and the Stepper that takes the next one."""
    if way in ("from", "parts"):
        before = joined(stepper.get_state())
        given, first = before.clone(), len(x) // 2 if way == "parts" else 0
        found = []
        for rows in (slice(first), slice(first, None)):
            own = {}
            if reset is not None:
                each = start is not None and start.dim() == 3
                begun = paired(case, start[:, rows] if each else start)
                own = {"reset": reset[rows], "reset_state": begun}
            if x[rows].shape[0]:
                output, after = stepper.step(x[rows], paired(case, given[:, rows]), **own)
                found.append((output, joined(after)))
        output, after = (torch.cat(each, i) for i, each in enumerate(zip(*found, strict=True)))
        assert same([given, joined(stepper.get_state())], [before, before])
        stepper.set_state(paired(case, after))
        return output, stepper
    start = paired(case, start)
    if way == "call" and reset is not None:
        return stepper(x, reset, start), stepper
    if reset is not None:
        stepper.reset(reset, start)
    if way == "refresh":
        stepper.refresh()
    elif way in ("deepcopy", "copy"):
        stepper = getattr(copy, way)(stepper)
    return stepper(x), stepper


def check_stepper(case):
    """Steps have the bits of the sequence, with resets of some rows to zeros or to states."""
    case |= {"bidirectional": False, "batch_first": False}
    if "amx" in case["isa"]:  # where a step may take other products than the sequence
        torch.set_float32_matmul_precision("highest")
    T, B, I, H = (case[letter] for letter in "TBIH")  # noqa: E741
    module, S = module_of(case).eval(), case["layers"] * reference.STATES.get(case["cell"], 1)
    x = torch.randint(case["vocabulary"], (T, B)).to(getattr(torch, case["index_dtype"]))
    x = arranged(x if "Emb" in case["module"] else uniform(case, T, B, I), case["layout"])
    reset = torch.rand(T, B) < 0.3 if case["reset"] else None
    shape = (S, *([B] if case["reset"] == "each" else []), H)
    start = uniform(case, *shape) if case["reset"] in ("shared", "each") else None
    torch.set_num_threads(case["threads"])
    stepped = rnnext.Stepper(module, B)
    assert not joined(stepped.get_state()).any()
    if case["hx"]:
        stepped.set_state(paired(case, arranged(uniform(case, S, B, H), case["layout"])))
    hx, found = stepped.get_state(), []
    for t, x_t in enumerate(x):
        marks = None if reset is None else reset[t]
        way = case["ways"][t % len(case["ways"])]
        output, stepped = stepped_in_any_way(case, stepped, x_t, way, marks, start)
        found.append(output)
    torch.set_num_threads(1)
    with torch.no_grad():
        of = (module.rnn, module.embedding(x)) if "Emb" in case["module"] else (module, x)
        output, h_n = of[0](of[1], hx, reset=reset, reset_state=paired(case, start))
    found = [torch.stack(found), joined(stepped.get_state())]
    assert same(found, [output, joined(h_n)])
    joined(stepped.get_state()).zero_()  # a copy
    stepped.reset(state=paired(case, start))
    wanted = torch.zeros_like(found[1]) if start is None else start.view(S, -1, H)
    assert torch.equal(joined(stepped.get_state()), wanted.expand_as(found[1]))


CHECKS = {
    "recurrence": check_recurrence,
    "function": check_function,
    "layers": check_layers,
    "tokens": check_layers,
    "cell": check_cell,
    "embedding": check_embedding,
    "stepper": check_stepper,
}


def check(**case):
    """Raise AssertionError where the call is wrong. A failing test prints this call."""
    torch.manual_seed(case["seed"])
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(case["precision"])
    rnnext._C.set_cpu_isa(case["isa"])
    counted = case.get("counted")  # whether tables are multiplied with W_ih first
    work, ahead = (0, 1024) if counted else (embedding_rnn.COUNTED_WORK, -1)
    of_work = patch.object(embedding_rnn, "COUNTED_WORK", work)
    with of_work, patch.object(stepper, "_PROJECTED_ROWS", ahead):
        CHECKS[case["call"]](case)
