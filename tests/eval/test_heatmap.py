from lrk.eval.heatmap import draw_heat_map, draw_loss_by_position, draw_scores


def test_cells_have_their_scores(tmp_path, drawn_texts):
    scores = {(8192, 0.0): 100.0, (8192, 50.0): 40.0, (131_072, 50.0): 7.0}
    draw_heat_map(scores, [50.0, 0.0], "niah_grid, a model", tmp_path / "grid.png")
    for text in ("niah_grid, a model", "8,192", "131,072", "50 %", "100", "40", "7"):
        assert text in drawn_texts
    assert drawn_texts.count("0") == 0, "a cell without a score has none"


def test_bars_say_how_many_were_asked(tmp_path, drawn_texts):
    scores = {4096: [100.0, 100.0, 0.0, 0.0], 1024: [100.0] * 3}
    draw_scores(scores, "passkey, a model", tmp_path / "passkey.png")
    assert {"1,024\n3 asked", "4,096\n4 asked", "100", "50"} <= set(drawn_texts)
    assert drawn_texts.index("1,024\n3 asked") < drawn_texts.index("4,096\n4 asked")


def test_each_line_ends_at_its_length(tmp_path, drawn_texts):
    curves = {length: [(length / 4, 3.0), (3 * length / 4, 2.0)] for length in (512, 8192, 16384)}
    draw_loss_by_position(curves, "a model", tmp_path / "loss.png")
    assert {"8,192", "16,384", "a model"} < set(drawn_texts)
    assert "512" not in drawn_texts, "too near 0 to be read"
