"""The pictures of `report`: what their lines are of, how they look, what the legend says."""

import pytest
from report_runs import groups_in, write_run

from skyformer.report import pictures
from skyformer.report.pictures import draw_loss_curves, draw_progress, looks_of, mean_line


@pytest.fixture
def figures(monkeypatch):
    """The pictures that are drawn, which are not written."""
    drawn = []
    monkeypatch.setattr(pictures, "save_picture", lambda figure, path: drawn.append(figure))
    return drawn


def legend_of(figure):
    return [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]


def test_line_of_a_method_is_the_mean_of_its_seeds(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path / str(seed), seed=seed, steps=60, max_steps=60)
        if seed:
            text = (folder / "metrics.csv").read_text().replace("19,,,,0.1,", "19,,,,0.3,")
            (folder / "metrics.csv").write_text(text)
    write_run(tmp_path / "cut", seed=2, steps=40, max_steps=60, accuracy=None)
    (group,) = groups_in(tmp_path)
    line = mean_line(group, "accuracy", "steps")
    assert line.x.tolist() == [20, 40, 60], "the one that was cut short does not count"
    assert line.mean == pytest.approx([20, 20, 30])
    assert (line.low[0], line.high[0]) == pytest.approx((10, 30))
    assert mean_line(group, "loss", "time").x == pytest.approx([20, 40, 60]), "a step takes a second"


def test_settings_of_a_method_look_apart_and_alike(tmp_path):
    for number in (64, 128):
        write_run(tmp_path / str(number), model__attention__init_args__num_landmarks=number)
    write_run(tmp_path / "text", task="text")
    groups = groups_in(tmp_path)
    usual, further = looks_of(groups).values()
    assert list(looks_of(groups)) == ["Skyformer, num_landmarks=128", "Skyformer, num_landmarks=64"]
    assert usual["color"] == further["color"]
    assert usual["linestyle"] != further["linestyle"]
    assert usual["markerfacecolor"] != further["markerfacecolor"]


def test_no_picture_where_nothing_was_evaluated(tmp_path):
    write_run(tmp_path / "run", steps=10, max_steps=10)
    groups = groups_in(tmp_path)
    assert not draw_progress(groups, "accuracy", "steps", tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def without_speed(folder):
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace(",32.0,", ",,"))


def test_run_without_speed_is_left_out_against_time_and_its_method_is_not(tmp_path):
    write_run(tmp_path / "timed")
    without_speed(write_run(tmp_path / "untimed", seed=1))
    (group,) = groups_in(tmp_path)
    assert mean_line(group, "accuracy", "steps").num_seeds == 2
    line = mean_line(group, "accuracy", "time")
    assert (line.num_seeds, line.x.tolist()) == (1, [20, 40, 60, 80, 100])
    without_speed(tmp_path / "timed")
    (group,) = groups_in(tmp_path)
    assert mean_line(group, "accuracy", "time") is None


def test_seed_that_was_run_twice_counts_once(tmp_path):
    write_run(tmp_path / "a", record={"started": "2026-02-01"})
    write_run(tmp_path / "b", record={"started": "2026-03-01"})
    (group,) = groups_in(tmp_path)
    assert mean_line(group, "accuracy", "steps").num_seeds == 1


def test_legend_says_how_many_seeds_a_line_is_of(tmp_path, figures):
    for seed in range(3):
        write_run(tmp_path / "sky" / str(seed), seed=seed, steps=100 if seed == 1 else 40)
        write_run(tmp_path / "softmax" / str(seed), attention="softmax", seed=seed)
    write_run(tmp_path / "informer", attention="informer")
    draw_progress(groups_in(tmp_path), "accuracy", "steps", tmp_path / "p.png")
    assert legend_of(figures[0]) == ["Skyformer (1 of 3 seeds)", "Softmax (3 seeds)", "Informer"]
    write_run(tmp_path / "text", task="text")
    draw_progress(groups_in(tmp_path), "loss", "time", tmp_path / "p.png")
    assert legend_of(figures[1])[0] == "Skyformer (1 of 3 seeds on ListOps)"


def test_loss_curves_tell_the_settings_of_a_method_apart(tmp_path, figures):
    for number in (64, 128):
        for seed in range(2):
            changes = {"model__attention__init_args__num_landmarks": number}
            write_run(tmp_path / f"{number}_{seed}", seed=seed, **changes)
    draw_loss_curves(groups_in(tmp_path), tmp_path / "p.png")
    assert legend_of(figures[0]) == ["Skyformer, num_landmarks=64", "Skyformer, num_landmarks=128"]
    (panel,) = figures[0].axes
    assert len(panel.lines) == 4
    assert len({line.get_linestyle() for line in panel.lines}) == 2


def test_nine_settings_of_a_method_look_apart(tmp_path):
    for number in range(9):
        write_run(tmp_path / str(number), model__attention__init_args__num_landmarks=2**number)
    looks = [(str(look["linestyle"]), look["linewidth"]) for look in looks_of(groups_in(tmp_path)).values()]
    assert len(set(looks)) == 9


def test_long_legend_is_whole(tmp_path, figures):
    for number in range(24):
        write_run(tmp_path / str(number), model__attention__init_args__num_landmarks=number + 1)
    draw_progress(groups_in(tmp_path), "accuracy", "steps", tmp_path / "p.png")
    draw_loss_curves(groups_in(tmp_path), tmp_path / "p.png")
    for figure in figures:
        figure.savefig(tmp_path / "p.png")
        legend = figure.legends[0].get_window_extent()
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= legend.y0 < legend.y1 <= figure.bbox.y1
