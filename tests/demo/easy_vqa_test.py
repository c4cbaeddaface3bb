"""What the demo takes from easy-VQA is true: facts against pixels, repainting against the questions."""

import collections

import numpy as np
import pytest
from PIL import Image

from demo import easy_vqa
from demo.easy_vqa import EasyQuestion, Facts


def picture(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def about() -> dict[int, list[EasyQuestion]]:
    grouped = collections.defaultdict(list)
    for question in easy_vqa.questions("train"):
        grouped[question.image].append(question)
    return grouped


@pytest.mark.parametrize("split, questions, images", [("train", 38575, 4000), ("test", 9673, 1000)])
def test_splits_are_whole(split, questions, images):
    asked = easy_vqa.questions(split)
    assert len(asked) == questions
    assert list(easy_vqa.image_paths(split)) == list(range(images)) == sorted({q.image for q in asked})


@pytest.mark.parametrize(
    "text, answer, known",
    [
        ("what color is the shape?", "teal", Facts("teal", None)),
        ("what color is the circle?", "teal", Facts("teal", "circle")),
        ("what is the blue shape?", "rectangle", Facts("blue", "rectangle")),
        ("what shape is in the image?", "triangle", Facts(None, "triangle")),
        ("is there a red shape?", "yes", Facts("red", None)),
        ("is there a red shape?", "no", Facts(None, None)),
        ("is there not a red shape in the image?", "no", Facts("red", None)),
        ("is no circle present?", "no", Facts(None, "circle")),
        ("does the image not contain a circle?", "yes", Facts(None, None)),
    ],
)
def test_facts_of_one_question(text, answer, known):
    assert easy_vqa.facts([EasyQuestion(0, text, answer)]) == known


def test_facts_by_exclusion():
    about = [EasyQuestion(0, "is there a circle?", "no"), EasyQuestion(0, "is no triangle present?", "yes")]
    assert easy_vqa.facts(about) == Facts(None, "rectangle")


def test_facts_are_what_the_pixels_show(about):
    """The main colour, and how much of its bounding box a whole shape fills: 1, pi / 4 or 1 / 2."""
    paths, known_shapes = easy_vqa.image_paths("train"), 0
    for number in range(300):
        known, pixels = easy_vqa.facts(about[number]), picture(paths[number])
        painted = easy_vqa.is_colour(pixels, easy_vqa.main_colour(pixels))
        assert known.colour in (None, easy_vqa.main_colour(pixels))
        rows, columns = np.nonzero(painted)
        cut = min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == 63
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        if known.shape is not None and not cut and box > 200:
            filled = painted.sum() / box
            shape = "triangle" if filled < 0.6 else "circle" if filled < 0.85 else "rectangle"
            assert known.shape == shape, number
            known_shapes += 1
    assert known_shapes > 100


def test_no_image_contradicts_itself(about):
    """As the truth of an image is one shape and one colour, a wrong reading of a negation would leave none over."""
    unknown = sum(None in easy_vqa.facts(questions) for questions in about.values())
    assert len(about) == 4000 and unknown == 422


def test_repaint_changes_place_and_colour_only(about):
    paths = easy_vqa.image_paths("train")
    changed = moved = 0
    for number in range(40):
        before = picture(paths[number])
        after, renamed = easy_vqa.repaint(before, np.random.default_rng(number))
        assert after.shape == before.shape and after.dtype == np.uint8
        assert sorted(renamed) == sorted(renamed.values()) == sorted(easy_vqa.COLOURS)
        np.testing.assert_array_equal(after[0, 0], before[0, 0])
        old, new = easy_vqa.main_colour(before), easy_vqa.main_colour(after)
        assert new == renamed[old]
        place, new_place = easy_vqa.is_colour(before, old), easy_vqa.is_colour(after, new)
        assert new_place.sum() == place.sum()
        changed += new != old
        moved += bool(np.any(new_place != place))
    assert changed > 25 and moved > 35


def test_repaint_leaves_a_cut_shape_at_its_border():
    pixels = np.full((17, 19, 3), 240, np.uint8)
    pixels[:5, 7:10] = easy_vqa.COLOURS["red"]
    places = set()
    for seed in range(20):
        after, _ = easy_vqa.repaint(pixels, np.random.default_rng(seed))
        rows, columns = np.nonzero(np.any(after != 240, axis=2))
        assert (rows.min(), rows.max(), np.ptp(columns)) == (0, 4, 2)
        places.add(int(columns.min()))
    assert len(places) > 5


def test_repainted_questions_tell_the_repainted_facts(about):
    """Exchanging colour words in questions and answers gives the facts of the recoloured picture, for every image."""
    renamed = dict(zip(easy_vqa.COLOURS, [*list(easy_vqa.COLOURS)[3:], *list(easy_vqa.COLOURS)[:3]]))
    for number in range(200):
        known = easy_vqa.facts(about[number])
        again = [EasyQuestion(number, *(easy_vqa.rename(text, renamed) for text in q[1:])) for q in about[number]]
        assert easy_vqa.facts(again) == Facts(renamed.get(known.colour), known.shape)


def test_rename_leaves_other_words():
    renamed = {**{name: name for name in easy_vqa.COLOURS}, "red": "blue", "blue": "red"}
    assert easy_vqa.rename("is a red shape rendered blue?", renamed) == "is a blue shape rendered red?"


def test_kinds():
    asked = easy_vqa.questions("train")
    kinds = collections.Counter(map(easy_vqa.kind, asked))
    assert set(kinds) == set(easy_vqa.KINDS)
    assert kinds["yes/no shape"] + kinds["yes/no color"] == 28407
    assert easy_vqa.kind(EasyQuestion(0, "what is the blue shape?", "circle")) == "what shape"
    assert easy_vqa.kind(EasyQuestion(0, "what color is the circle?", "blue")) == "what color"
