"""The list of plans that the page holds, and the page."""

import dataclasses

from benchmarks.plans import CASES, command
from benchmarks.plans_page import format_page
from vidlatent.config import load
from vidlatent.plan.build import list_programs
from vidlatent.plan.hardware import GIB, parse_topology

MEMORY = {
    "parts": {"parameters": GIB, "optimizer": 2 * GIB, "discriminator and loss helpers": GIB / 4},
    "arguments": 3.25 * GIB,
    "outputs": 0,
    "outputs_in_place": 0,
    "temporaries": 4 * GIB,
    "code": 0,
    "total": 7.25 * GIB,
}
SEEN = {
    "about": "step of a batch of 8 clips",
    "parameters": 2**28,
    "memory": MEMORY,
    "needed": MEMORY["total"],
    "mesh": {"data": 1, "fsdp": 8, "context": 2, "tensor": 1},
    "flops": {"program": 4e12, "model": 3e12, "compiler": None},
    "bytes": {"program": 5e9, "compiler": None},
    "collectives": [{"sent": 2e9}, {"sent": 1e9}],
    "compiler_seconds": None,
    "roofline": {
        "compute": 0.5,
        "memory": 0.25,
        "interconnect": 0.125,
        "at_least": 0.5,
        "bound": "compute",
        "mfu_at_most": 0.75,
    },
}
TRIED = {"mesh": SEEN["mesh"], "fits": False, "why": "no room", "needed": None, "overrides": {}}


def made(case, *attempts):
    plan = {"program": "train", "topology": "v5p:2x2x4", "limit": 95 * GIB, "attempts": attempts}
    told = {"jax": "1", "libtpu": "2", "commit": "abc", "processor_seconds": 9.0, "peak_bytes": GIB}
    return {"case": dataclasses.asdict(case), "plan": plan, **told}


def test_every_case_is_a_program_of_a_preset():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        config = load(case.config, {key: str(value) for key, value in case.keys.items()})
        devices = parse_topology(case.topology).devices
        assert config.plan.what in list_programs(config) and config.plan.what != "encode"
        if config.plan.what != "train":
            continue
        # Every bucket's batch spreads over what the mesh leaves to it.
        ways = devices // (config.mesh.context * config.mesh.tensor)
        assert all(batch % ways == 0 for *_, batch in config.data.buckets), case.name


def test_the_page_holds_what_was_planned_and_names_the_rest():
    first, second, third = CASES[:3]
    fits = {"fits": True, "overrides": {"model.remat": True}, **SEEN}
    rows = [
        made(first, TRIED, fits),
        {"case": dataclasses.asdict(second), "failed": "stopped after 9 s"},
        {"case": dataclasses.asdict(third)},
    ]
    text = format_page(rows, {case.name: " ".join(command(case)) for case in CASES})
    for part in (
        "Nothing was run",
        "jax 1, libtpu 2.",
        "| abc |",
        "fsdp 8, context 2",
        "| 268.4 | 1.00 |  0.00 |".replace("  ", " "),
        "| 4.00 | 7.25 | 95.00 | changed |",
        "| 4 | 3 | 5 | 3 | 500 | 250 | 125 | 500 | compute | 75% | unknown | 9 | 1.00 |",
        "as it is: no room; `--config.model.remat=True`: 7.25 GiB, fits.",
        f"- {second.name} (`{second.config}`, {second.topology}): stopped after 9 s",
        f"--config=configs/{first.config.partition(':')[0]}.py",
    ):
        assert part in text, part
    assert third.name in text.split("## Not planned")[1]
