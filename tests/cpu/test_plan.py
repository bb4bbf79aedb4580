"""The plan of a call: a pure function of sizes, kernels and machine, and its text."""

import platform

import pytest
import torch

import rnnext.__main__
from helpers import samples
from helpers.common import ISAS, cover, run_python
from reference import GATES
from rnnext import _C
from rnnext.explain import explain

BOTH = {"train": True, "directions": 2}
XEON = {"threads": 1, "machine": "xeon-amx"}


def plan(T, B, I, H, **options):  # noqa: E741 - the field's letter
    options = {"dtype": torch.float32, "threads": 2, "machine": "zen4", **options}
    return _C.plan(T=T, B=B, I=I, H=H, **options)


@pytest.fixture(autouse=True)
def _isa() -> None:
    """One shape of kernels, so that what is expected is the same on every machine."""
    if "generic" not in ISAS:
        pytest.skip("the plans are those of the generic build, which is left out")
    _C.set_cpu_isa("generic")


def test_a_machine_by_its_name_or_by_its_numbers():
    for size in [(100, 1, 64, 256), (64, 32, 64, 1024), (35, 20, 200, 200)]:
        named = plan(*size, machine="zen4")
        numbers = [f"{k}={v}" for k, v in named.items() if isinstance(v, float) and k != "cycles"]
        described = plan(*size, machine=",".join(numbers))
        assert (named.pop("machine"), named.pop("origin")) == ("zen4", "its name")
        assert described.pop("origin") == "numbers that were given"
        del described["machine"]  # the row that the numbers changed
        assert named == described


PLANNED = """
from rnnext import _C, explain
print(_C.cpu_isa(), explain.explain(100, 16, 64, 1024, threads=2))
"""


def planned(**environment):
    return run_python("-c", PLANNED, **environment).stdout


def test_the_environment_names_the_machine_and_lowers_the_isa():
    assert explain(9, 2, 3, 5).split("planned for ")[1].startswith(("zen4", "zen5", "xeon-amx"))
    named = planned(RNNEXT_CPU_MACHINE="zen4")
    changed = planned(RNNEXT_CPU_MACHINE="zen4,far_rate=4", RNNEXT_CPU_ISA="generic")
    assert "planned for zen4, told by RNNEXT_CPU_MACHINE" in named
    assert "2 part(s) of the batch" in named
    assert changed.startswith("generic")
    assert "far_rate=4," in changed
    assert "2 part(s) of the hidden units" in changed
    if ISAS[-1] == "avx512_bf16":  # pairs are multiplied where that is faster
        assert named.startswith("avx512_bf16")
        assert planned(RNNEXT_CPU_MACHINE="xeon-amx").startswith("avx512 ")
    for name in ("RNNEXT_CPU_MACHINE", "RNNEXT_CPU_ISA"):
        wrong = run_python("-c", "import rnnext", **{name: "z80"})
        assert wrong.returncode != 0
        assert name in wrong.stderr
        assert "z80" in wrong.stderr


# The choices for calls of T, B, I, H, and options.
CHOICES = {
    "many sequences are shared out, and nobody waits": [
        ((100, 64, 64, 256), {"threads": 1}, {"batch_parts": 1, "hidden_parts": 1}),
        ((100, 64, 64, 256), {"threads": 3}, {"batch_parts": 3, "group_rows": 22}),
        ((9, 960, 16, 64), {}, {"batch_parts": 2, "group_rows": 240}),
    ],
    "one step of many is not shared by hidden units, though rows divide less evenly": [
        ((1, B, 128, 128), {"train": True}, {"hidden_parts": 1, "features": "by_step"})
        for B in (1250, 1253)
    ],
    "one sequence of large weights is shared by hidden units": [
        *[
            ((100, 1, 64, 256), {"cell": cell, "train": train}, {"hidden_parts": 2})
            for cell in ("elman", *GATES)
            for train in (False, True)
        ],
        ((100, 1, 64, 32), {"threads": 1}, {"hidden_parts": 1}),
        ((100, 1, 64, 256), {"machine": "zen4,wait=1e6"}, {"hidden_parts": 1}),
    ],
    "halves of the weights stay in L2 where what lies beyond is slow": [
        ((64, 32, 64, 1024), {"machine": "zen4"}, {"hidden_parts": 1}),
        ((64, 32, 64, 1024), {"machine": "xeon-amx"}, {"hidden_parts": 2}),
        ((128, 64, 1024, 1024), {"machine": "xeon-amx"}, {"hidden_parts": 1}),  # fetched in time
    ],
    "threads without work are not called": [
        ((100, 1, 64, 64), {}, {"threads": 1}),
        ((100, 1, 64, 256), {}, {"threads": 2}),
        ((100, 4096, 64, 256), {"threads": 128}, {"threads": 63}),
        ((100, 3, 64, 64), {"threads": 8}, {"threads": 3}),
        ((100, 1, 64, 64), {"directions": 2}, {"threads": 2}),
    ],
    "the state lives in the rows of the output": [
        ((9, 22, 16, 192), {}, {"state_home": "rows"}),
        ((9, 20, 16, 192), {"threads": 1}, {"state_home": "rows"}),  # narrow, without a neighbour
        ((3, 16, 256, 64), {}, {"state_home": "rows"}),  # narrow, for few steps
        ((100, 32, 16, 8), {}, {"state_home": "rows"}),  # rows of half a line
    ],
    "but not": [
        ((9, 22, 16, 192), {"lengths": [5] + [9] * 21}, {"state_home": "scratch"}),  # zeros at ends
        ((9, 20, 16, 192), {}, {"state_home": "scratch"}),  # narrow, beside another thread's
        ((9, 64, 16, 1024), {}, {"state_home": "scratch"}),  # they would meet in one cache set
        ((9, 1, 16, 512), {}, {"state_home": "scratch"}),  # others write a part of them
        ((9, 44, 16, 192), {"dtype": torch.bfloat16}, {"state_home": "scratch"}),  # rounded
        ((9, 64, 16, 512), {"dtype": torch.float64}, {"state_home": "scratch"}),
    ],
    "the only step reads hx where it lies": [
        *[
            ((1, 8, 16, 64), {"hx": True, "cell": cell}, {"from_hx": True})
            for cell in ("elman", *GATES)
        ],
        ((1, 8, 16, 64), {}, {"from_hx": False}),
        ((2, 8, 16, 64), {"hx": True}, {"from_hx": False}),
    ],
    "one step of few sequences packs nothing; of some, its own hidden units": [
        ((1, 7, 16, 64), {}, {"weights": "unpacked"}),
        ((1, 8, 16, 64), {}, {"weights": "streamed"}),
        ((2, 1, 16, 64), {}, {"weights": "own"}),
        ((1, 16, 512, 512), {"hx": True}, {"weights": "streamed", "hidden_parts": 2}),
        ((1, 16, 512, 512), {"hx": True}, {"waits": False}),
        ((2, 16, 512, 512), {}, {"weights": "own", "hidden_parts": 2, "waits": True}),
        ((200, 64, 512, 512), {}, {"hidden_parts": 1}),
        ((9, 64, 1024, 1024), {"machine": "xeon-amx"}, {"hidden_parts": 1}),
        ((9, 64, 1024, 1024), {"machine": "xeon-amx", "cell": "lstm"}, {"hidden_parts": 2}),
    ],
    "few rows sum the gradients of weights where they are returned": [
        ((1, 16, 1024, 1024), {"train": True}, {"direct_sums": True}),
        ((20, 1, 256, 256), {"train": True}, {"direct_sums": True}),
        ((65, 1, 256, 256), {"train": True}, {"direct_sums": False}),
        ((1, 64, 64, 64), {"train": True}, {"direct_sums": False}),  # sums of each thread's own
        ((1, 16, 99, 99), {"train": True, "dtype": torch.bfloat16}, {"direct_sums": False}),
    ],
    "one step backward packs nothing": [
        ((1, 16, 256, 256), {"train": True, "threads": 1}, {"features": "streamed"}),
        ((3, 16, 256, 256), {"train": True, "threads": 1}, {"features": "by_step"}),
    ],
    "few rows project ahead": [
        (sizes, {"threads": 1, "cell": cell}, {"projects": projects, "state_home": "rows"})
        for cell in ["elman", *GATES]
        for sizes, projects in [
            ((100, 3, 64, 64), True),
            ((100, 4, 64, 64), False),
            ((100, 32, 1024, 512), False),
            ((100, 32, 0, 64), True),
        ]
    ],
    "rows of some steps share a W_ih that takes longer to read than to multiply": [
        ((30, 12, 640, 640), XEON, {"chunk_rows": 36}),
        ((30, 12, 352, 704), XEON, {"chunk_rows": 12}),
        ((30, 2, 1024, 1024), XEON, {"chunk_rows": 23}),  # it did before
        ((30, 40, 640, 640), XEON, {"chunk_rows": 40}),
        ((30, 12, 400, 400), XEON, {"chunk_rows": 12}),
        ((30, 32, 1024, 1024), XEON | {"cell": "gru"}, {"chunk_rows": 32}),  # it would fill L2
    ],
    "groups sum gradients over their own rows, unless there are fewer than hidden units": [
        ((100, 16, 16, 64), {"train": True}, {"own_sums": True, "features": "by_step"}),
        ((1, 16, 256, 256), {"train": True}, {"own_sums": False}),
    ],
    "a thread takes both directions where it has a tile of sequences": [
        ((100, 12, 16, 64), BOTH, {"joined": True, "features": "by_step", "batch_parts": 2}),
        ((100, 3, 16, 64), BOTH, {"joined": False, "features": "streamed"}),
        ((100, 32, 1024, 256), BOTH, {"joined": False}),
        ((1, 32, 16, 64), BOTH, {"joined": False}),
        ((100, 16, 0, 64), BOTH, {"joined": False}),
        ((100, 32, 16, 64), BOTH | {"dtype": torch.bfloat16}, {"joined": False}),
    ],
    "weights that the gradients of the features need once are not packed first": [
        ((1, rows, 1024, 1024), {"train": True, "cell": cell}, {"features": features})
        for cell in ("elman", *GATES)
        for rows, features in ((64, "streamed"), (65, "shared"))
    ],
    "panels are fetched ahead where weights lie far beyond L2": [
        ((64, 64, 300, 300), {"threads": 1}, {"fetches": False}),
        ((64, 64, 300, 300), {"threads": 1, "cell": "gru"}, {"fetches": False}),
        ((64, 64, 500, 500), {"threads": 1, "cell": "gru"}, {"fetches": True}),
        ((64, 64, 500, 500), {"threads": 1, "cell": "gru", "train": True}, {"fetches": True}),
        *(
            ((64, 64, 300, 300), {"cell": "gru", "machine": machine}, {"fetches": fetches})
            for machine, fetches in (("xeon-amx", True), ("xeon-amx,fetch_bytes=4e6", False))
        ),
        ((1, 64, 1024, 1024), {"threads": 1}, {"weights": "streamed", "fetches": False}),
    ],
    "an output from far memory is prefetched": [
        ((300, 64, 64, 256), {}, {"far": True}),
        ((300, 64, 64, 256), {"cell": "lstm"}, {"far": True}),
        ((10, 64, 64, 256), {}, {"far": False}),
    ],
    "large gradients of gates are written past the caches": [
        ((64, 32, 64, 256), {"cell": "lstm", "train": True}, {"past_caches": True}),
        ((63, 32, 64, 256), {"cell": "gru", "train": True}, {"past_caches": False}),
        ((64, 32, 64, 1024), {"train": True}, {"past_caches": False}),
    ],
    "layers of few sequences run as a wavefront": [
        ((100, 1, 64, 64), {"layers": 2}, {"wavefront": True}),
        ((8, 2, 128, 128), {"layers": 2}, {"wavefront": True}),  # both ways pack
        ((100, 64, 64, 256), {"layers": 2}, {"wavefront": False}),
        ((100, 257, 64, 64), {"layers": 2}, {"wavefront": False}),  # more than a group at once
        ((100, 1, 64, 64), {"layers": 2, "directions": 2}, {"wavefront": False}),
    ],
    "steps that there are are shared out, and count as work": [
        ((100, 101, 16, 64), {"lengths": [100] + [1] * 100}, {"batch_parts": 2, "group_rows": 100}),
        # A part ends nearest to its share, 275 steps: with 270 of 6 sequences, not with 290 of 7.
        ((50, 20, 16, 64), {"lengths": [50] * 5 + [20] * 15}, {"batch_parts": 2, "group_rows": 14}),
        ((100, 32, 16, 64), {}, {"threads": 2}),
        ((100, 32, 16, 16), {"lengths": [100] + [1] * 31}, {"threads": 1}),
    ],
}


@pytest.mark.parametrize("what", CHOICES)
def test_what_is_chosen(what):
    for size, options, expected in CHOICES[what]:
        assert plan(*size, **options).items() >= expected.items(), (size, options)


def test_the_estimate_falls_with_threads_and_rises_with_rows():
    cycles = [plan(100, 64, 64, 256, threads=n)["cycles"] for n in (1, 2, 4, 8)]
    assert cycles == sorted(cycles, reverse=True)
    cycles = [plan(100, B, 64, 256)["cycles"] for B in (1, 8, 64, 512)]
    assert cycles == sorted(cycles)


@cover(isa=ISAS, dtype=samples.DTYPES)
def test_kernels_tell_their_shape(isa, dtype):
    _C.set_cpu_isa(isa)  # after the fixture of this file
    found, tiles = plan(10, 2, 3, 5, dtype=dtype), "amx" in isa and dtype == torch.bfloat16
    narrow = isa == "generic" or (isa == "amx_stand_in" and not tiles)
    vector = 16 if narrow else 32 if isa == "avx2" else 64
    assert found["panel"] == 2 * vector // (8 if dtype == torch.float64 else 4)
    pairs = tiles or (isa == "avx512_bf16" and dtype == torch.bfloat16)
    assert found["k_pack"] == (2 if pairs else 1)
    assert found["amx"] == tiles
    small = 2 if platform.machine() == "x86_64" else 6
    assert found["mr"] == (32 if tiles else small if narrow else 6 if isa == "avx2" else 8)


@pytest.mark.parametrize(
    ("precision", "most", "less"),
    [
        ("high", (8, 32, 8, 128), [(7, 32, 8, 128), (40, 15, 8, 128), (40, 33, 8, 63)]),
        ("high", (40, 12, 8, 256), [(40, 11, 8, 256), (1, 31, 8, 1024), (1, 15, 8, 9999)]),
        ("high", (1, 32, 8, 1024), [(1, 99, 8, 255)]),
        ("medium", (2, 16, 8, 64), [(2, 15, 8, 64), (9, 3, 8, 64), (9, 33, 8, 63)]),
        ("medium", (1, 8, 8, 256), [(1, 7, 8, 300), (1, 9, 8, 255)]),
    ],
)
@pytest.mark.skipif("amx_stand_in" not in ISAS, reason="it is not built")
def test_tiles_multiply_float32_where_that_is_faster(precision, most, less):
    _C.set_cpu_isa("amx_stand_in")
    torch.set_float32_matmul_precision(precision)
    found = [plan(*size, machine="xeon-amx")["precision"] for size in (most, *less)]
    assert found == [precision, *["highest"] * len(less)]
    assert plan(11, 24, 8, 32, cell="lstm", machine="xeon-amx")["precision"] == precision


@pytest.mark.skipif("amx_stand_in" not in ISAS, reason="it is not built")
def test_a_machine_with_tiles_is_planned_for_them(capsys):
    size = (100, 32, 256, 256)
    fma = plan(*size, machine="xeon-amx", threads=1)
    _C.set_cpu_isa("amx_stand_in")
    tiles = plan(*size, machine="xeon-amx", threads=1, dtype=torch.bfloat16)
    assert fma["cycles"] > 6 * tiles["cycles"]
    assert tiles["weight_bytes"] == fma["weight_bytes"] / 2
    # Rows are multiplied by sixteen, so fewer of them take as long.
    few = plan(100, 17, 256, 256, machine="xeon-amx", threads=1, dtype=torch.bfloat16)
    assert few["cycles"] == tiles["cycles"]
    # The state is a row of operands where it fills blocks; else it is read from scratch.
    assert [plan(9, B, 16, H, dtype=torch.bfloat16)["state_home"] for B, H in [
        (64, 128), (64, 120), (60, 128), (48, 128)
    ]] == ["rows", "scratch", "scratch", "rows"]  # fmt: skip
    # More than sixteen rows are shared out in sixteens: a part of one takes as long.
    assert [plan(9, B, 16, 256, machine="xeon-amx", threads=2, dtype=torch.bfloat16)["group_rows"]
            for B in (20, 32, 33, 40, 48, 80)] == [10, 16, 32, 32, 32, 48]  # fmt: skip
    # Gradients of the features convert their rows in scratch, which has room for so many.
    torch.set_float32_matmul_precision("medium")
    assert [plan(1, B, 64, 512, train=True, cell="lstm")["features"] for B in (32, 33)] == [
        "streamed", "shared"
    ]  # fmt: skip
    text = explain(*size, machine="xeon-amx", dtype=torch.bfloat16, threads=2)
    wanted = "xeon-amx, told by its name", "on amx_stand_in\n", "tiles=530", "AMX tiles of up to 32"
    assert [part for part in wanted if part not in text] == []
    assert rnnext.__main__.main(["explain", "9", "8", "64", "64", "--precision", "high"]) == 0
    assert "float32 (high), on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"T": 0}, "T must be positive, got 0"),
        ({"I": -1}, "I must not be negative, got -1"),
        ({"H": 2**60}, "H must be less than 2.31, got 1152921504606846976"),
        ({"T": 2**31 - 1, "B": 2**31 - 1}, "T . B . D . .I . H. . H must be less than 2.60, got"),
        ({"lengths": [1]}, "lengths must hold B = 2 numbers, got 1"),
        ({"lengths": [1, 11]}, "lengths must be in 0..10, got 11"),
        ({"machine": "z80"}, "machine must be one of zen4, zen5, xeon-amx, got z80"),
        ({"machine": "zen5,speed=1"}, "a machine's numbers are multiply, .*, got speed"),
        ({"machine": "zen5,far_rate=0"}, "a machine's far_rate must be a positive number, got 0"),
        ({"machine": "zen5,wait="}, "a machine's wait must be a positive number, got"),
        ({"machine": "zen5,wait=inf"}, "a machine's wait must be a positive number, got inf"),
        ({"machine": "wait=0,zen5"}, "after a machine's name come NAME=NUMBER, got zen5"),
    ],
)
def test_invalid_sizes_and_machines_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        plan(**({"T": 10, "B": 2, "I": 3, "H": 5} | wrong))


def test_an_unknown_instruction_set_names_the_variable():
    with pytest.raises(ValueError, match=r"RNNEXT_CPU_ISA must be one of .*generic.*, got sse9"):
        _C.set_cpu_isa("sse9")


def test_explain_says_it_in_words():
    for size, options, *words in [
        ((100, 1, 64, 256), {}, "2 part(s) of the hidden", "W_ih x comes", "planned for zen4"),
        ((1, 1, 8, 8), {"cell": "rnn"}, "nothing is packed", "), rnn, float32", "each has"),
        ((100, 1, 64, 64), {"num_layers": 2}, "a wavefront"),
        ((100, 16, 16, 64), {"train": True}, "summed by each part over its own", "in chunks of"),
        ((100, 16, 16, 64), {}, "at most 8 sequence(s) of each", "each part packs the weights"),
        ((1, 16, 512, 512), {"train": True}, "summed where they are returned", "read as they lie"),
        ((64, 32, 64, 600), {"cell": "lstm"}, "lstm, float32 (highest)", "is fetched"),
    ]:
        text = explain(*size, threads=2, machine="zen4", **options)
        assert all(part in text for part in words), text


def test_explain_from_the_command_line(capsys):
    assert rnnext.__main__.main(["explain", "100", "64", "64", "256", "--threads", "2"]) == 0
    assert "2 part(s) of the batch" in capsys.readouterr().out
    options = ["--precision", "medium"]
    assert rnnext.__main__.main(["explain", "100", "64", "64", "256", *options]) == 0
    assert "float32 (highest), on generic" in capsys.readouterr().out
    assert torch.get_float32_matmul_precision() == "highest"
    assert rnnext.__main__.main(["explain", "0", "64", "64", "256"]) == 2
    assert "T must be positive, got 0" in capsys.readouterr().err
    assert rnnext.__main__.main(["explain", "9", "64", "64", "256", "--cell", "elman"]) == 2
    assert "cell must be one of 'rnn', 'gru'" in capsys.readouterr().err
    assert rnnext.__main__.main(["explain", *"9888", "--train", "--layers", "2"]) == 2
    assert "num_layers must be 1 with train, got 2" in capsys.readouterr().err
    assert rnnext.__main__.main([]) == 0
    shown = capsys.readouterr().out  # what a bug report needs
    versions = rnnext.__version__, torch.__version__
    assert all(part in shown for part in ("CPU ISA in use", "compiler", "CUDA archs", *versions))
