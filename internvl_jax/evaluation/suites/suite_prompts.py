"""What is asked: the text that VLMEvalKit's InternVL wrapper hands to the model, its pictures and how it answers.

Source: VLMEvalKit at e8e78f05, vlmeval/vlm/internvl/{internvl_chat,utils}.py with the settings of InternVL3.5 (version
V2.0), and the data sets' own prompts where the wrapper has none.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from internvl_jax.data import THINKING_SYSTEM
from internvl_jax.evaluation.suites.suite import Suite
from internvl_jax.evaluation.suites.tsv import LETTERS, TableRow, as_list

Mode = Literal["default", "cot", "thinking"]
MODES: tuple[Mode, ...] = ("default", "cot", "thinking")

MARK = "<image>"
_RENAMED = 64  # pictures of a video are called frames up to this number, and those whose numbers begin so
_TOTAL_TILES = 64  # of all pictures of a question, thumbnails aside
_LIMITS = (  # most tiles of a picture, by parts of names; 6 for all others
    (12, ("ChartQA_TEST", "MMMU_DEV_VAL", "MMMU_TEST", "MME-RealWorld", "VCR_EN", "VCR_ZH", "OCRVQA", "BMMR")),
    (18, ("DocVQA_VAL", "DocVQA_TEST", "DUDE", "MMLongBench_DOC", "SLIDEVQA")),
    (24, ("InfoVQA_VAL", "InfoVQA_TEST", "OCRBench", "HRBench4K", "HRBench8K")),
)
_LETTER = "Answer with the option's letter from the given choices directly."
_WORD = "Answer the question using a single word or phrase."
_YES_NO = "Please answer yes or no."
_BOX = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
_SHORT = (
    *("OCRVQA", "TextVQA", "ChartQA", "DocVQA", "InfoVQA", "OCRBench", "DUDE", "SLIDEVQA", "GQA"),
    "MMLongBench_DOC",
)
_PLAIN = (
    *("MathVista", "MathVision", "VCR", "MTVQA", "MMVet", "MMDU", "CRPE", "MIA-Bench", "MM-Math", "DynaMath"),
    *("QSpatial", "WeMath", "LogicVista", "MM-IFEval", "ChartMimic", "MMReason"),
)
_CHINESE = re.compile("[\u4e00-\u9fff]")
_REASONED_GUESS = (
    "If you are uncertain or the problem is too complex, make a reasoned guess based on the information provided. "
    "Avoid repeating steps indefinitely—provide your best guess even if unsure. Think step by step logically, "
    "considering all relevant information before answering."
)
_COT_CHOICE = (
    "Answer the preceding multiple choice question. The last line of your response should follow this format: 'Answer: "
    "\\boxed{$LETTER}' (without quotes), where LETTER is one of the options. " + _REASONED_GUESS
)
_COT_OPEN = (
    "Answer the preceding question. The last line of your response should follow this format: 'Answer: "
    "\\boxed{$FINAL_ANSWER}' (without quotes), where 'FINAL_ANSWER' is your conclusion based on the reasoning "
    "provided. " + _REASONED_GUESS
)
_COT_THINKING = "Please answer the question and put the final answer within \\boxed{}."
_REAL_WORLD = {
    "MME-RealWorld-CN": "根据图像选择上述多项选择题的最佳答案。只需回答正确选项的字母（A, B, C, D 或 E）。\n"
    "最佳答案为：",
    "MME-RealWorld": "Select the best answer to the above multiple-choice question based on the image. Respond with "
    "only the letter (A, B, C, D, or E) of the correct option. \nThe best answer is:",
}
_MVBENCH = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
_VIDEO_MME = (
    "\nThese are the frames of a video. Select the best answer to the following multiple-choice question based on the "
    "video. Respond with only the letter (A, B, C, or D) of the correct option.\n"
)
_MMBENCH_VIDEO = (
    "\nYou will be provided with {} separate frames uniformly sampled from a video, the frames are provided in "
    "chronological order of the video.\nPlease analyze these images and provide the answer to the question about the "
    "video content.\nPlease directly reply with your response to the only question.\n"
)
_MLVU = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
_FRAMES_OF = "These are frames of a video."
_ONE_NUMBER = "Answer briefly and directly in one float number."


class SuitePrompt(NamedTuple):
    """How one question is put.

    Attributes:
      question: with a mark for each picture, in their order; what else looks like one is text.
      limit: most tiles of each picture, its thumbnail aside.
      magnified: whether the first picture is twice as large as its file.
      system: the system text, None for the model's own.
    """

    question: str
    limit: int
    magnified: bool
    system: str | None


def prompt(suite: Suite, row: TableRow, pictures: int, mode: Mode) -> SuitePrompt:
    """How a question is put.

    Args:
      pictures: how many it has; frames, of a video.
    """
    limit = max(1, min(tile_limit(suite), _TOTAL_TILES // max(1, pictures)))
    system = THINKING_SYSTEM if mode == "thinking" else None
    return SuitePrompt(_question(suite, row, pictures, mode), limit, "MMMU" in suite.name, system)


def tile_limit(suite: Suite) -> int:
    """Most tiles of a picture that stands alone."""
    if suite.kind == "video":
        return 1
    for limit, names in _LIMITS:
        if any(name in suite.name for name in names):
            return limit
    return 12 if suite.kind == "GUI" else 6


def generation(mode: Mode, size: str | None = None) -> dict[str, Any]:
    """What the wrapper asks of generation; a greedy answer has no use for temperature and top_p.

    Args:
      size: of the model, as the paper calls it; None: no matter.
    """
    thinks = mode == "thinking"
    longest = 65536 if thinks else 16384 if size == "241B-A28B" else 4096
    return {"do_sample": thinks, "max_new_tokens": longest, "top_p": 0.95, "temperature": 0.6}


def marked(parts: Sequence[str | None], name: str) -> str:
    """Texts and pictures (None) of a message as one text, each picture being a mark.

    Several pictures are listed first and referred to by their numbers where they stand, unless they stand in one run.
    """
    pictures, texts = parts.count(None), [part for part in parts if part is not None]
    header = "".join(f"Image-{number}: {MARK}\n" for number in range(1, pictures + 1))
    if "MUIRBench" in name:  # has marks of its own
        text = "\n".join(texts).replace(" ".join([MARK] * pictures), "")
        for number in range(1, pictures + 1):
            text = text.replace(MARK, f"<Image-{number}>", 1)
        return header + text
    if pictures == 1:
        return f"{MARK}\n" + "\n".join(texts)
    numbers = iter(range(1, pictures + 1))
    text = "".join(f"<Image-{next(numbers)}>" if part is None else part for part in parts)
    run = "".join(f"<Image-{number}>" for number in range(1, pictures + 1))
    return (header + text).replace(run, "") if pictures else text


def _question(suite: Suite, row: TableRow, pictures: int, mode: Mode) -> str:
    if suite.kind == "video":
        return _about_video(suite.name, row, pictures)
    if suite.kind == "MMERealWorld":
        own = row.cells["question"] + " " + row.cells.get("multi-choice options", "") + "\n"
        text = own + next(text for name, text in _REAL_WORLD.items() if name in suite.name)
        return marked([*[None] * pictures, text], suite.name)
    return marked([_text(suite, row, mode), *[None] * pictures], suite.name)


def _text(suite: Suite, row: TableRow, mode: Mode) -> str:
    question, name = row.cells["question"], suite.name
    if suite.kind == "Y/N":
        if "MME" in name:
            return f"{question} {_WORD}"
        return f"{question} {_YES_NO} {_WORD}" if "HallusionBench" in name or "AMBER" in name else question
    if suite.kind == "MCQ":
        text = _choice(row)
        return text if mode == "default" else f"{text.replace(_LETTER, '').strip()}\n{_cot(mode, _COT_CHOICE)}"
    if suite.kind == "GUI":
        return _BOX.format(question)
    if suite.kind == "VQA":
        if "LLaVABench" in name or "WildVision" in name:
            return f"{question}\nAnswer this question in detail."
        is_maths = "MathVerse" in name
        if any(part in name for part in _SHORT) or not (is_maths or any(part in name for part in _PLAIN)):
            return f"{question}\n{_WORD}"
        if is_maths:
            question = question.replace("please directly answer the question and", "please")
    return question if mode == "default" else f"{question}\n{_cot(mode, _COT_OPEN)}"


def _choice(row: TableRow) -> str:
    hint = row.cells.get("hint")
    text = (f"{hint}\n" if hint else "") + row.cells["question"]
    text += "".join(f"\n{letter}. {option}" for letter, option in row.options.items())
    if _CHINESE.search(text):
        return text + ("\n请直接回答选项字母。" if row.options else "\n请直接回答问题。")
    return f"{text}\n{_LETTER if row.options else 'Answer the question directly.'}"


def _cot(mode: Mode, text: str) -> str:
    return _COT_THINKING if mode == "thinking" else text


def _about_video(name: str, row: TableRow, frames: int) -> str:
    text = marked(_video_parts(name, row.cells, frames), name)
    for number in range(1, _RENAMED + 1):  # in the question's own words too, as released
        text = text.replace(f"Image-{number}", f"Frame-{number}")
    if name in ("Video-MME", "MMBench-Video"):
        text = text.replace("\nAnswer:", "")
    return text + f"\n{_LETTER}" if name == "Video-MME" else text


def _video_parts(name: str, cells: Mapping[str, str], frames: int) -> list[str | None]:
    question, options, clip = cells["question"], as_list(cells.get("candidates", "")), [None] * frames
    if name in ("MVBench", "MLVU_MCQ"):
        listed = "".join(f"\n({letter}) {option}" for letter, option in zip(LETTERS, options))
        asked = f"Question: {question}\nOptions:{listed}".rstrip()
        return [_MVBENCH if name == "MVBench" else _MLVU, *clip, asked, "\nOnly give the best option."]
    if name == "Video-MME":
        return ["", *clip, _VIDEO_MME, "\n".join([f"Question: {question}", *options, "Answer: "])]
    if name == "MMBench-Video":
        return [_MMBENCH_VIDEO.format(frames), *clip, f"Question: {question}\nAnswer: "]
    if name == "LongVideoBench":
        lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
        return ["", *clip, "\n".join([question, *lettered, _LETTER])]
    return [*clip, "\n".join([_FRAMES_OF, question, *options, _LETTER if options else _ONE_NUMBER])]
