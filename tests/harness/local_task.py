"""Testbed scenes as a local task of lmms-eval: a parquet file, a YAML file, and the functions that it names."""

# pyright: reportMissingImports=false

import io
from textwrap import dedent

from tokentrim.testbed.tasks import TASKS

UTILS = '''
def process_results(doc, results):
    said = results[0].strip()
    right = float(said.split() == doc["answer"].split())
    return {
        "right": right,
        "share_of_words": {"said": said, "answer": doc["answer"]},
        "in_points": {"score": right},
    }


def share_of_words(items):
    """Right words over all words: no mean of single scores."""
    pairs = [(item["said"].split(), item["answer"].split()) for item in items]
    return sum(len(set(a) & set(b)) for a, b in pairs) / sum(len(b) for _, b in pairs)


def points(items):
    """On a scale that goes beyond 1."""
    return 100.0 * sum(item["score"] for item in items)


def film(doc):
    return ["film.mp4"]


def messages(doc):
    """Two turns, and the image between words."""
    return [
        {"role": "system", "content": [{"type": "text", "text": "look"}]},
        {"role": "user", "content": [
            {"type": "text", "text": "at"},
            {"type": "image", "url": doc["image"]},
            {"type": "text", "text": doc["question"]},
        ]},
    ]
'''

YAML = """
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {folder}/test.parquet
    train: {folder}/train.parquet
training_split: train
test_split: test
output_type: generate_until
doc_to_visual: image
doc_to_text: question
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
  until: []
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
  - metric: share_of_words
    aggregation: !function utils.share_of_words
    higher_is_better: true
  - metric: in_points
    aggregation: !function utils.points
    higher_is_better: true
metadata:
  version: 1
"""


def png(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_split(path, task, split, n):
    from datasets import Dataset, Features, Image, Value

    samples = TASKS[task].samples(split, n)
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    rows = [{"image": png(s.images[0]), "question": s.question, "answer": s.answer} for s in samples]
    Dataset.from_list(rows, features=features).to_parquet(str(path))


def write_task(folder, name="local_where", task="where", n=6, max_new_tokens=16, **changes):
    """Write a task into a folder and return its YAML file; ``changes`` are lines to replace, by their beginning."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "test.parquet").exists():
        write_split(folder / "test.parquet", task, "test", n)
        write_split(folder / "train.parquet", task, "calibration", n)
    (folder / "utils.py").write_text(dedent(UTILS))
    text = YAML.format(name=name, folder=folder, max_new_tokens=max_new_tokens).lstrip()
    for old, new in changes.items():
        text = "\n".join(new if line.startswith(old) else line for line in text.split("\n"))
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path
