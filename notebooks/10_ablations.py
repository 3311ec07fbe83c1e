# ---
# jupyter:
#   jupytext:
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablations
#
# [![Open in Colab](../book/figures/open_in_colab.svg)](https://colab.research.google.com/github/defectdiffu/defectdiffu/blob/main/notebooks/10_ablations.ipynb)
#
# **The question.** The method has many parts: three groups of blocks, three prompts, a weight on the defect that
# adapts itself, a dial for the strength. Which of them make it better?
#
# **Before you run it, predict.** Take away one thing at a time: the fusion blocks, the adaptive weight, the separate
# prompts, the several strengths. Which loss hurts most, and would you see it in the *pictures* or only in the numbers?

# %% tags=["hide-cell"]
import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Where the package is missing, as on Colab, install it with all that it needs.
NEEDED = {
    "defectdiffu": "defectdiffu[evaluation] @ git+https://github.com/defectdiffu/defectdiffu",
    "myst_nb": "myst-nb",
}
missing = [
    source
    for module, source in NEEDED.items()
    if importlib.util.find_spec(module) is None
]
if missing:
    # What PyTorch and NumPy are there fit the machine: they stay, to the very version.
    kept = [
        f"{module}=={version(module)}\n"
        for module in ("torch", "torchvision", "numpy")
        if importlib.util.find_spec(module)
    ]
    constraints = Path(tempfile.mkdtemp(), "constraints.txt")
    constraints.write_text("".join(kept))
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(constraints), *missing], check=True)

# %% tags=["parameters"]
# @title Settings
FAST = False  # @param {type:"boolean"}
WEIGHTS = "tiny"  # @param {type:"string"}
NUM_IMAGES = 3  # @param {type:"integer"}
STEPS = 20  # @param {type:"integer"}

# %% tags=["hide-cell"]
import inspect
import os

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from myst_nb import glue
from scipy.stats import binomtest

from defectdiffu import PRESETS, DefectDiffuPipeline, viz
from defectdiffu.evaluation.judge import Judge
from defectdiffu.evaluation.records import read_record
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap
from defectdiffu.experiments.ablations import variants

FAST = FAST or os.environ.get("DEFECTDIFFU_FAST") == "1"
if FAST:  # small enough for a check on every change
    NUM_IMAGES, STEPS = 2, 2
viz.use_style()

# %% [markdown]
# ## What is taken away
#
# An ablation is the same training with one setting changed. Here every setting is a switch in the config, so the whole
# list is one table, `variants` in `defectdiffu/experiments/ablations.py`:

# %%
# NBVAL_CHECK_OUTPUT
for name, changes in variants(PRESETS["tiny"]).items():
    print(f"{name:30}", changes or "")

# %% [markdown]
# The first row is the model as it is. The second changes nothing but the random start, so what it moves is luck. Then
# come the paper's four, then choices that the paper leaves open or that are made otherwise here. Removing the fusion
# blocks also makes the model smaller; so there is another row that gives their number to the other two parts. Two rows
# change the sampling alone and need no training.
#
# ## What the paper found
#
# Its Table 1 gives FID (lower is better) and LPIPS (higher is more diverse), averaged over the 15 products of
# MVTec AD at 512 pixels. How many trainings a number stands for is not said, and none has an
# interval.

# %% tags=["hide-input"]
PAPER = {  # row "Average" of Table 1; what it does not give is None
    "full": (69.35, 0.21),
    "without fusion part": (149.83, 0.14),
    "without AAL (R = 3)": (152.77, 0.13),
    "one text prompt": (197.55, None),
    "single strength (w_d = 1)": (None, 0.20),
}


def markdown_table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


markdown_table(
    ["the paper's", "FID", "LPIPS"],
    [
        [name, *("" if v is None else f"{v:.2f}" for v in p)]
        for name, p in PAPER.items()
    ],
)

# %% [markdown]
# ## How an effect is measured
#
# Two models are shown the *same* held-out pictures with the same noise. Call $s_i$ the score of picture $i$. The effect
# of a change is the mean difference
#
# $$
# \Delta = \frac{1}{n} \sum_i \left(s_i^{\text{changed}} - s_i^{\text{full}}\right)
# $$
#
# and its uncertainty comes from drawing the $n$ pictures anew, with replacement, a few thousand times: the bootstrap.
# Pairing matters. Some pictures are hard for every model, and the difference takes that out.

# %%
print(inspect.getsource(paired_bootstrap))

# %% [markdown]
# By hand, on numbers where the truth is known. Forty pictures differ much in difficulty; the changed model is worse by
# 0.1 on each, with a little noise.

# %%
rng = np.random.default_rng(0)
difficulty = rng.normal(5, 2, 40)
full = difficulty + rng.normal(0, 0.1, 40)
changed = difficulty + 0.1 + rng.normal(0, 0.1, 40)

again = np.random.default_rng(0)
difference = changed - full
draws = [difference[again.integers(40, size=40)].mean() for _ in range(2000)]
low, high = np.quantile(draws, (0.025, 0.975))

package = paired_bootstrap(changed, full)
assert np.allclose([low, high], [package["low"], package["high"]])
a, b = bootstrap(full), bootstrap(changed)
print(f"full     {a['mean']:.2f} ({a['low']:.2f} to {a['high']:.2f})")
print(f"changed  {b['mean']:.2f} ({b['low']:.2f} to {b['high']:.2f})")
print(f"paired   {difference.mean():+.2f} ({low:+.2f} to {high:+.2f})")

# %% [markdown]
# Side by side the two intervals overlap almost wholly, and one would say "no difference". Paired, the same numbers
# show it plainly.
#
# ## The measured effects
#
# All variants start from nothing and get the same pictures, autoencoder, steps and seed as the full model. The table,
# where there is a record, says how many. Below zero means *less than the full model*. For the three errors less is
# better, for the judge's scores more is better. The judge is a network that was trained on thousands of rendered
# pictures; the chapter on how good the model is says how far it can be trusted.

# %% tags=["hide-input"]
SCORES = {  # score: (what it is, +1 if more is better)
    "noise": ("error of the predicted noise", -1),
    "defect_noise": ("the same, inside defects", -1),
    "mask": ("error of the mask's latent", -1),
    "product_accuracy": ("judge names the product", 1),
    "defect_accuracy": ("judge names the defect", 1),
    "mask_iou": ("IoU of mask and judge's mask", 1),
    "judge_distance": ("diversity: judge's distance", 1),
}
COMMAND = (
    "defectdiffu data render runs/data --size 64; "
    "defectdiffu data render runs/val --size 64 --per-pair 2 --seed 1; "
    "defectdiffu evaluate ablations --data runs/data --val runs/val "
    "--out runs/ablations --json record.json"
)
record = read_record("ablations")
if record is None:
    print("Not run yet. The command is\n  " + COMMAND.replace("; ", "\n  "))
else:
    held = record["held_fixed"]
    print(
        f"{held['preset']}, {held['steps']} steps of {held['batch_size']} latents,"
    )
    print(f"{held['training_pictures']} training pictures,")
    print(f"{held['held_out_pictures']} held-out pictures,")
    print(f"seeds {sorted({run['seed'] for run in record['runs']})},")
    print(f"{record['hardware']}, {record['date']}")
    print(f"judge: {held.get('judge', 'the shipped one')}")
    print(f"autoencoder: {held['autoencoder']}")
    print(f"predicted: {held['recipe']['model']['prediction']}")

# %% mystnb={"image": {"alt": "Change of seven scores with intervals, one line per variant"}} tags=["hide-input"]
compared = [run for run in record["runs"] if "differences" in run] if record else []
figure = None
if compared:
    names = list(dict.fromkeys(run["name"] for run in compared))
    seeds = sorted({run["seed"] for run in compared})
    figure, axes = plt.subplots(
        4,
        2,
        figsize=(7, 1.2 + 0.95 * len(names)),
        sharey=True,
        layout="constrained",
    )
    for axis, (score, (what, better)) in zip(
        axes.flat, SCORES.items(), strict=False
    ):
        axis.axvline(0, color="grey", linewidth=0.8)
        for run in compared:
            if score not in run["differences"]:
                continue
            d = run["differences"][score]
            at = names.index(run["name"]) + 0.25 * (seeds.index(run["seed"]))
            worse = d["high"] < 0 if better > 0 else d["low"] > 0
            gain = d["low"] > 0 if better > 0 else d["high"] < 0
            colour = viz.COLOURS[1] if worse else viz.COLOURS[0] if gain else "grey"
            axis.plot([d["low"], d["high"]], [at, at], color=colour)
            axis.plot(d["mean"], at, "o", color=colour, markersize=4)
        arrow = "more is better" if better > 0 else "less is better"
        axis.set(
            title=f"{what}\n({arrow})", yticks=range(len(names)), yticklabels=names
        )
        axis.xaxis.set_major_locator(plt.MaxNLocator(3))
    axes.flat[0].set_ylim(len(names) - 0.4, -0.6)
    for axis in axes[-1]:
        axis.set_xlabel("changed minus full")
    axes[-1, 1].set_visible(len(SCORES) == 8)
    plt.close(figure)
figure if figure else print("Not run yet: no figure.")

# %% [markdown]
# In the figure, where there is a record, orange is worse than the full model, blue better, grey cannot be told from
# none. Each line is one seed's 95 % interval. It is an interval over *pictures*: it says what would happen with other
# pictures and the same two trainings. Another random start of the training moves the scores as well: the row of that
# name, where it has been run, shows how far. An effect that is not larger than that, seen with one seed, is a hint and
# no more.
#
# Both records were made with the recipe of version 0.1.0: the noise is predicted, without convolution, and every step
# weighs the mask alike. The table of switches above is today's.
#
# The full model of that record attends over positions, as the released code does. By its result attention over tokens
# became the default, and a second record, `ablations_tokens`, begins from there:

# %% tags=["hide-input"]
second = read_record("ablations_tokens")
SHOWN = {
    "noise": "noise error",
    "product_accuracy": "product",
    "defect_accuracy": "defect",
    "mask_iou": "mask IoU",
    "judged_good": "judged good at w_d = 0",
}


def shown(run, score):
    if "differences" not in run:
        return f"{run['scores'][score]['mean']:.3f}"
    d = run["differences"][score]
    return f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"


markdown_table(
    ["full, then changed minus full", *SHOWN.values()],
    [
        [run["name"], *(shown(run, score) for score in SHOWN)]
        for run in (second["runs"] if second else [])
    ]
    or [["not run yet", *[""] * len(SHOWN)]],
)

# %% [markdown]
# ## Beside the paper
#
# The paper's claims in our terms, fixed before any of this was run: *quality* is whether the judge names the defect
# that was asked for, *diversity* is how far apart its features of two pictures of the same pair are. These are not FID
# and LPIPS on photographs, so only the direction can be compared.

# %% tags=["hide-input"]
CLAIMS = [  # variant, score, what the paper says of it
    ("without fusion part", "defect_accuracy", "quality falls"),
    ("without fusion part", "judge_distance", "diversity falls"),
    ("without AAL (R = 3)", "defect_accuracy", "quality falls"),
    ("without AAL (R = 3)", "judge_distance", "diversity falls"),
    ("one text prompt", "defect_accuracy", "quality falls"),
    ("single strength (w_d = 1)", "judge_distance", "diversity falls"),
]


def luck(score):
    """What another random start alone moves: no smaller change of another training counts."""
    found = [r for r in compared if r["name"] == "another random start"]
    return max((abs(r["differences"][score]["mean"]) for r in found), default=0)


def verdict(name, score, difference):
    sampled_anew = name.startswith("single strength")  # of the same training
    if difference["low"] <= 0 <= difference["high"]:
        return "not seen"
    if abs(difference["mean"]) <= luck(score) and not sampled_anew:
        return "no more than luck"
    return "as the paper says" if difference["mean"] < 0 else "the contrary"


def interval(d):
    return f"{d['mean']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f})"


rows, verdicts = [], []
for name, score, claim in CLAIMS:
    found = [r for r in compared if r["name"] == name and score in r["differences"]]
    for run in found:
        d = run["differences"][score]
        verdicts.append(verdict(name, score, d))
        rows.append([name, claim, str(run["seed"]), interval(d), verdicts[-1]])
    if not found:
        rows.append([name, claim, "", "not run yet", ""])
markdown_table(["without", "the paper", "seed", "here", "verdict"], rows)

# %% tags=["remove-cell"]
glue("abl_claims", len(verdicts), display=False)
glue("abl_confirmed", verdicts.count("as the paper says"), display=False)
glue("abl_contrary", verdicts.count("the contrary"), display=False)

# %% [markdown]
# Comparisons run: {glue:text}`abl_claims`; as the paper says: {glue:text}`abl_confirmed`; the other way round:
# {glue:text}`abl_contrary`. The others cannot be told from no effect, or move no more than another random start does
# ("luck"). A short training of a small
# model on drawn pictures cannot refute a long one of a large model on photographs. It can tell you what to expect at
# *this* size.
#
# ## One strength or several: in this page
#
# Two ablations need no training at all, so here they are, live. The paper's "single" draws every picture at
# $w_d = 1$; the full method spreads them over several strengths. The pairs are the first defect of every product that
# the weights know, the seeds are 0, 1, 2, and so on.

# %% mystnb={"image": {"alt": "Generated pictures, one row per pair: left at one strength, right at several"}}
pipe = DefectDiffuPipeline.from_pretrained(WEIGHTS)
pipe.set_progress_bar_config(disable=True)
judge = Judge.shipped(pipe.size)
pairs = [
    (product, defects[0]) for product, defects in pipe.pairs.items() if defects
]
if FAST:
    pairs = pairs[:2]


def judged(**settings):
    """{pair: (the pipeline's output, what the judge says of it)}"""
    answers = {}
    for pair in pairs:
        out = pipe(
            *pair, num_images=NUM_IMAGES, num_inference_steps=STEPS, **settings
        )
        images = np.stack(
            [np.asarray(i.resize([judge.size] * 2)) for i in out.images]
        )
        answers[pair] = out, judge(images)
    return answers


def spread(answers):
    """Mean distance of the judge's features between two pictures, pair by pair."""
    first, second = np.triu_indices(NUM_IMAGES, 1)
    features = [verdict.features for _, verdict in answers.values()]
    return [np.linalg.norm(f[first] - f[second], axis=1).mean() for f in features]


single = judged(w_d=1.0)
several = judged(w_d=list(np.linspace(1, 3, NUM_IMAGES)))
effect = paired_bootstrap(spread(single), spread(several))
viz.grid(
    [single[p][0].images + several[p][0].images for p in pairs[:4]],
    [", ".join(p) for p in pairs[:4]],
    ["w_d = 1.0"] * NUM_IMAGES
    + [f"w_d = {w:.1f}" for w in np.linspace(1, 3, NUM_IMAGES)],
    inches=0.85,
)

# %% tags=["remove-cell"]
glue("abl_single", interval(effect), display=False)
glue("abl_pairs", len(pairs), display=False)
glue(
    "abl_single_verdict",
    {
        "as the paper says": "less diverse, as the paper says",
        "the contrary": "more diverse, contrary to the paper",
        "not seen": "not measurably less or more diverse",
    }[verdict("single strength (w_d = 1)", "judge_distance", effect)],
    display=False,
)

# %% [markdown]
# The left half at one strength, the right half at several, with the same noise. Over {glue:text}`abl_pairs` pairs the
# distance at one strength minus that at several is {glue:text}`abl_single`: one strength is
# {glue:text}`abl_single_verdict`.
#
# ## Three forms of guidance
#
# The paper adds the defect's direction as seen on *no product in particular* (`double_free`, Eq. 4). The released code
# has two other forms: `defect_only` tells the product always, and `product_aware` takes the defect's direction on this
# very product. The weights are the same in all three.

# %%
forms = ("double_free", "defect_only", "product_aware")
answers = {form: judged(guidance=form) for form in forms}


def scores(answers):
    """What the judge says of every picture: product right, defect right, IoU."""
    rows = []
    for (product, defect), (out, seen) in answers.items():
        marked = seen.mask_probs > 0.5
        ours = np.stack(
            [np.asarray(m.resize([judge.size] * 2)) > 0 for m in out.masks]
        )
        both, either = (marked & ours).sum((1, 2)), (marked | ours).sum((1, 2))
        rows += zip(
            np.array(seen.products) == product,
            np.array(seen.defects) == defect,
            both / np.maximum(either, 1),
            strict=True,
        )
    return np.array(rows, float)


def share(hits):
    """A share with Wilson's 95 % interval, which has a width even at 0 and at 1."""
    low, high = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {"mean": hits.mean(), "low": low, "high": high}


values = {form: scores(a) for form, a in answers.items()}
rows = [
    [
        f"`{form}`",
        *(
            f"{b['mean']:.2f} ({b['low']:.2f} to {b['high']:.2f})"
            for b in (share(v[:, 0]), share(v[:, 1]), bootstrap(v[:, 2]))
        ),
    ]
    for form, v in values.items()
]
markdown_table(["guidance", "product right", "defect right", "mask IoU"], rows)

# %% mystnb={"image": {"alt": "Generated pictures, one row per pair, one column per form of guidance"}}
viz.grid(
    [[answers[form][p][0].images[0] for form in forms] for p in pairs[:6]],
    [", ".join(p) for p in pairs[:6]],
    forms,
)

# %% tags=["remove-cell"]
gaps = {
    form: paired_bootstrap(values[form][:, 1], values["double_free"][:, 1])
    for form in forms[1:]
}
told = [
    f"`{form}` {interval(d)}"
    + ("" if d["low"] > 0 or d["high"] < 0 else ", which cannot be told from none")
    for form, d in gaps.items()
]
glue("abl_forms", "; ".join(told).replace("`", ""), display=False)

# %% [markdown]
# All pictures in a row have the same noise. In the table brackets hold 95 % intervals, Wilson's for the two shares.
# Against `double_free`, paired, the share of defects named right differs by: {glue:text}`abl_forms`.
#
# ## What would break this
#
# - **One seed, many rows.** With so many variants and scores, some interval will exclude zero by chance alone. Look for
#   effects that several scores and several seeds share.
# - **A budget that is too short.** A part that pays off late looks useless early. The errors may still be falling when
#   a short run ends.
# - **Diversity by itself.** Noise is diverse, too. A variant whose pictures fall apart gains distance; read that score
#   only beside the others.
# - **A judge that prefers something.** All four "judge" scores come from one network. What fools it, fools them all.
#
# ## Summary
#
# Every part of the method is a switch, and every variant gets the same budget as the full model. Effects are measured
# pair by pair with an interval, and set beside the direction that the paper claims. Where a training has not been run
# the page says so instead of filling the gap.
#
# ## Exercises
#
# 1. Why does the table have a second row without the fusion part, "as deep"?
# 2. "Without mask loss" leaves the mask head untrained. Which of the scores must it spoil, and which must it not?
# 3. `product_aware` with $w_p = 1$ is `defect_only`. Show it on paper.
#
# ````{dropdown} Answers
# 1. Taking blocks away changes two things, the fusion and the size of the model. In the second row only the first
#    changes: the same number of blocks, none of which sees $c_f$. (The output layer still does, in both rows.)
# 2. The error of the mask's latent and the IoU with the judge's mask. The noise is predicted by the other branch of the
#    network; through the shared defect blocks it may change a little, for better or worse.
# 3. $\epsilon(g,\varnothing) + 1 \cdot [\epsilon(g,p) - \epsilon(g,\varnothing)] = \epsilon(g,p)$, and what remains is
#    $w_d\,[\epsilon(d,p) - \epsilon(g,p)]$.
# ````
