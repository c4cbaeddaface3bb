"""The demo's test as a benchmark file."""

import json

from demo import benchmark_file, easy_vqa
from internvl_jax.evaluation import Prediction, get_suite, open_suite, score_suite


def test_the_table_has_every_question_and_picture(tmp_path):
    assert benchmark_file.write(tmp_path / "EasyVQA.tsv") == 9_673
    file = open_suite(get_suite("EasyVQA"), tmp_path)
    questions, pictures = easy_vqa.questions("test"), easy_vqa.image_paths("test")
    assert [row.cells["question"] for row in file.table.rows] == [question.text for question in questions]
    for number in (0, 1, 5_000, 9_672):
        (picture,) = file.pictures(file.table.rows[number])
        assert picture == pictures[questions[number].image].read_bytes()
    prompt = next(file.prompts("default"))
    assert (prompt["question"], prompt["tiles"]) == (f"<image>\n{questions[0].text}", [1])
    right = {str(number): Prediction(str(number), question.answer) for number, question in enumerate(questions)}
    score = score_suite(file, right, None).rated.score
    assert score == [dict.fromkeys(["Overall", *sorted(easy_vqa.KINDS)], 100.0)], json.dumps(score)
