from defectdiffu import PRESETS
from defectdiffu.training.planning import plan


def test_larger_presets_are_said_to_take_more(data):
    plans = [
        plan(PRESETS[name].replace(training={"batch_size": 8}, start_from=None), [data])
        for name in ("tiny", "book", "paper")
    ]
    for key in ("memory_gb", "minutes"):
        values = [p[key] for p in plans]
        assert 0 < values[0] < values[1] < values[2]


def test_twice_the_steps_take_twice_the_time(data, monkeypatch):
    monkeypatch.setattr("defectdiffu.training.planning.matrix_rate", lambda: 1e11)
    preset = PRESETS["tiny"].replace(training={"batch_size": 8})  # begins from weights: no autoencoder stage
    once, twice = (plan(preset.replace(training={"steps": n}), [data])["minutes"] for n in (50_000, 100_000))
    assert abs(twice / once - 2) < 0.05
