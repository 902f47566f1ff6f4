from bench.support_matrix import document, read

CASE = """<testcase classname="tests.hf.test_x" name="{feature}{model}"><properties>
<property name="feature" value="{feature}"/><property name="model" value="{model}"/>
<property name="transformers" value="{release}"/>
<property name="torch" value="2.{release}"/></properties>{outcome}</testcase>"""


def report(path, release, *cases):
    text = "".join(
        CASE.format(feature=feature, model=model, release=release, outcome=outcome)
        for feature, model, outcome in cases
    )
    path.write_text(
        f"<testsuites><testsuite>{text}<testcase name='other'/></testsuite></testsuites>"
    )
    return str(path)


def test_the_worst_outcome_of_a_cell_is_shown(tmp_path):
    old = report(
        tmp_path / "old.xml",
        "5.10",
        ("cache", "llama", ""),
        ("cache", "llama", "<failure/>"),
        ("beam", "llama", ""),
    )
    new = report(
        tmp_path / "new.xml",
        "5.23",
        ("cache", "llama", ""),
        ("cache", "qwen2", "<skipped/>"),
        ("beam", "llama", ""),
    )
    lines = document([old, new], read([old, new])).splitlines()
    assert "|  | llama | qwen2 |" in lines
    assert "| cache | fails (5.10), yes (5.23) | - (5.10), not run (5.23) |" in lines
    assert "| beam | yes | - |" in lines
    assert any("5.10, 5.23" in line for line in lines)
    assert "| ? | 2.5.10 | ? | 5.10 | ? | ? | ? | ? | 2 | 1 | 0 |" in lines
    assert "| ? | 2.5.23 | ? | 5.23 | ? | ? | ? | ? | 2 | 0 | 1 |" in lines
