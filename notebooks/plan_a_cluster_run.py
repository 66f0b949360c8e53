# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Plan a run on a cluster
#
# Before renting a slice: does the training fit, how much memory is left, what bounds its speed, and
# what does the manifest for Kubernetes look like? All of it on this machine, **with no TPU**: the program is
# compiled ahead of time for the devices that are named. The numbers are the compiler's estimates; nothing here was run on a cluster.
#
# | what | minutes |
# |---|---|
# | eight CPU devices | half a minute of processor time, measured |
# | a TPU slice, the demo config | not measured |
# | a TPU slice, the paper's config (`PAPER = True`) | 6, measured once on two busy cores with an earlier version |
#
# A CPU runtime is enough, and best: on a machine with an accelerator it would be of no use.

# %% tags=["install"]
EXTRAS = "demo,plan,launch"

# %%
from notebooks import kit

runs = kit.start("plan")

# %% [markdown]
# ## What is planned

# %%
import importlib.util

PAPER = False
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None  # of the extra 'plan'
CONFIG = "configs/fsae.py:paper" if PAPER else "configs/fsae.py"
TOPOLOGY = "v5p:4x4x4" if PAPER else "v5e:2x4"
if kit.SMALL or not HAS_COMPILER:
    TOPOLOGY = "cpu:8"
print(f"{CONFIG} on {TOPOLOGY}")

# %% [markdown]
# ## Memory, work, traffic, time
#
# A batch must be a multiple of the devices that share it. What does not fit is changed step by step, and the plan says how.

# %%
import json

from vidlatent import config as configs
from vidlatent.plan.run import plan

keys = {} if PAPER else {"data.buckets": "((9, 64, 64, 16),)"}
if kit.SMALL:
    keys["data.buckets"] = "((5, 32, 32, 8),)"
config = configs.load(CONFIG, keys)
status = plan(config, runs, TOPOLOGY, str(runs / "plan.json"))
assert status in (0, 3)  # it fits, or it does not
found = json.loads((runs / "plan.json").read_text())

# %% [markdown]
# ## Where the memory goes

# %% tags=["picture"]
from matplotlib.figure import Figure

memory = found["attempts"][-1]["memory"]
parts = {**memory["parts"], "temporaries": memory["temporaries"]}
parts = {name: size / 2**20 for name, size in parts.items() if size}
figure = Figure(figsize=(7, 0.5 + 0.45 * len(parts)), layout="constrained")
axes = figure.subplots()
axes.barh(list(parts), list(parts.values()))
axes.set_xlabel(f"MiB on each device of {found['topology']}")
figure.savefig(runs / "memory.png", dpi=100)
kit.show_picture(runs / "memory.png")

# %% [markdown]
# ## The manifest
#
# A JobSet for GKE from the same config and topology: nodes, chips, the grace period in which a run saves when it is preempted.
# It is checked against Kubernetes' schemas before it is printed. `IMAGE` and `BUCKET` are yours.

# %%
from launch.gke import main as render

render(
    ["--config=configs/fsae.py:paper", "--topology=v5p:4x4x4", "--image=IMAGE", "--bucket=BUCKET"]
)

# %% [markdown]
# ## Before the run, on the machine itself
#
# `--mode=preflight` looks in seconds whether a machine is fit: devices, links, memory, storage, clocks. Here it
# looks at this one.

# %%
from vidlatent.preflight.run import inspect_machine

status = inspect_machine(
    configs.load("configs/fsae.py"), runs / "run", "", str(runs / "preflight.json")
)
print("fit" if status == 0 else "not fit")

# %% [markdown]
# Then: `kubectl apply -f run.yaml`, SLURM (`launch/slurm.sh`), TPU VMs (`launch/tpu_vm.sh`), or several processes on one
# machine (`python -m launch.local`): [clusters](../docs/clusters.md). Several seeds or rates: `python -m launch.sweep`.
