import json

from lrk.train.loss_curve import draw_loss_curve


def test_lines_are_labelled_at_their_ends(tmp_path, drawn_texts):
    rows = [
        {"step": 1, "loss": 3.0, "learning_rate": 1e-3},
        {"step": 2, "loss": 2.0},
        {"step": 2, "eval_131072_loss": 2.5, "eval_131072_runtime": 1.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_loss_curve(path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {"training", "evaluation at 131,072", "step"} < set(drawn_texts)


def test_a_run_without_losses_has_a_picture_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    draw_loss_curve(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").exists()
