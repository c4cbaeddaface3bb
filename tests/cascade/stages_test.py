"""What stages hand on to one another."""

import json

from cascade import stages


def test_answers_of_the_gspo_model_with_any_character_in_them(tmp_path):
    (tmp_path / "gspo" / "rollouts").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    prompt = {"image": "images/a.png", "question": "q\u2029", "answer": "5"}
    (tmp_path / "data" / "rl.jsonl").write_text(json.dumps(prompt, ensure_ascii=False) + "\n", encoding="utf-8")
    said = [{"text": f"five{character}or 5", "accuracy": 1} for character in "\u2028\u0085\x0b"]
    for number, response in enumerate(said):
        line = json.dumps({"prompt": "rl.jsonl:1", "responses": [response]}, ensure_ascii=False)
        (tmp_path / "gspo" / "rollouts" / f"{number:06d}.jsonl").write_bytes(f"{line}\n".encode())
    stages._write_answers(tmp_path)
    (line,) = (tmp_path / "data" / "answers.jsonl").read_text().split("\n")[:-1]
    assert [turn["value"] for turn in json.loads(line)["conversations"]] == ["<image>\nq\u2029", "five\x0bor 5"]
