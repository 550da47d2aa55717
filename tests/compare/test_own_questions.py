"""From a file of questions to a report, with metrics per answer and of all answers together."""

import json

import pytest

from tokentrim.compare import run
from tokentrim.plugins.loader import registry


@pytest.mark.slow
def test_a_file_of_questions_is_compared(tmp_path):
    lines = []
    for name in ("where", "color"):
        for place, sample in enumerate(registry("task").get(name).samples("test", 3)):
            sample.images[0].save(tmp_path / f"{name}{place}.png")
            lines.append({"image": f"{name}{place}.png", "question": sample.question, "answer": sample.answer,
                          "group": name})  # fmt: skip
    lines.append({**lines[-1], "question": "is there a red ring ?", "answer": "yes", "group": "polar"})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tmp_path / "c.yaml"
    config.write_text(
        "models: [testbed-plain]\nstrategies: [fastv]\nbudgets: [0.5]\ncontrols: []\ntext_only: false\ntiming: false\n"
        "tasks:\n- {task: mine.jsonl, metric: anls}\n- {task: mine.jsonl, group: where}\n"
        "- {task: mine.jsonl, group: polar, metric: yes-no-f1}\n"
    )
    summary = run(config, tmp_path / "out")
    file = tmp_path / "mine.jsonl"
    rows = {(row["task"], row["method"]): row for row in summary.data["cells"]}
    unpruned = {task: row for (task, method), row in rows.items() if method == "none"}
    assert [(row["metric"], row["n"]) for row in unpruned.values()] == [("anls", 7), ("exact", 3), ("yes-no-f1", 1)]
    # POPE takes whatever this model says for a yes.
    assert unpruned[f"{file}#polar@yes-no-f1"]["accuracy"] == 1.0
    results = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert {"mine.jsonl:1", "mine.jsonl:7"} <= {line["sample"] for line in results}
    assert (tmp_path / "out/report.html").exists()
