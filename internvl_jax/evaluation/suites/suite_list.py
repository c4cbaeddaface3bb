"""The benchmarks that are known by name."""

from internvl_jax.errors import InputError
from internvl_jax.evaluation.suites import (
    choice_scores,
    judged_scores,
    maths_scores,
    place_scores,
    text_scores,
    video_scores,
    wemath_scores,
    yes_no_scores,
)
from internvl_jax.evaluation.suites.suite import Suite
from internvl_jax.validation import nearest

_HIDDEN = "no answers are published: they are scored on a server"
_JUDGED = "its judge is asked in words of ours"
_SEEN = "its judge must see the pictures, and judges here read text: prompts and predictions only"
_CONCEPTS = "its second table, by concepts, is not made"
_WORDS = "no recorded case: words are split by a rule of ours where the official code has spaCy's"
_LANGUAGES = {  # the paper's name of each, the md5 of MMMB and of the multilingual MMBench
    "en": ("en", "1cd781a7", "d9ab776f"),
    "cn": ("zh", "13ed82fa", "2ed51353"),
    "pt": ("pt", "548ea2b3", "4ddfbcd2"),
    "ar": ("ar", "f3a18b63", "4271b4a0"),
    "tr": ("tr", "0733739d", "4fab39d5"),
    "ru": ("ru", "ce1cc8a0", "5ba1171f"),
}
_VCR = {
    "EN_EASY_500": "fd9258db",
    "EN_EASY_100": "9df5d726",
    "EN_EASY_ALL": "8a9b9688",
    "EN_HARD_500": "0a22a850",
    "EN_HARD_100": "1b20f5cb",
    "EN_HARD_ALL": "2d8b8b1e",
    "ZH_EASY_500": "beca5fd5",
    "ZH_EASY_100": "4a86a567",
    "ZH_EASY_ALL": "5050fe7f",
    "ZH_HARD_500": "617e3360",
    "ZH_HARD_100": "b0e38c85",
    "ZH_HARD_ALL": "54bbfef4",
}
_SCREENS = {
    "ScreenSpot_Mobile": "a5b52998",
    "ScreenSpot_Desktop": "e6e7bac2",
    "ScreenSpot_Web": "e51d168c",
    "ScreenSpot_v2_Mobile": "234c858a",
    "ScreenSpot_v2_Desktop": "5f2aa2a4",
    "ScreenSpot_v2_Web": "01cd0877",
}
_CHOICE, _CIRCULAR = choice_scores.choice, choice_scores.circular


def _choices() -> list[Suite]:
    """Questions with options."""
    found = [
        Suite("MMMU_DEV_VAL", "MCQ", _CHOICE, "585e8ad7", "helps", paper=("T15", "MMMU")),
        Suite("MMBench_DEV_EN_V11", "MCQ", _CIRCULAR, "30c05be8", "helps", "MMBench_V11", ("T6", "MMB1.1")),
        Suite("MMBench_DEV_CN_V11", "MCQ", _CIRCULAR, "593f9b5f", "helps", "MMBench_V11"),
        Suite("MMBench_TEST_EN_V11", "MCQ", _CIRCULAR, "8d1a704e", "helps", "MMBench_V11", missing=_HIDDEN),
        Suite("MMBench_TEST_CN_V11", "MCQ", _CIRCULAR, "156e6569", "helps", "MMBench_V11", missing=_HIDDEN),
        Suite("CCBench", "MCQ", _CIRCULAR, "f5dde47f", "helps"),
        Suite("MMStar", "MCQ", _CHOICE, "e1ecd214", "helps", paper=("T6", "MMStar")),
        Suite("AI2D_TEST", "MCQ", _CHOICE, "0f593e0d", "helps", paper=("T4", "AI2D w mask")),
        Suite("AI2D_TEST_NO_MASK", "MCQ", _CHOICE, "fd8f4636", "helps", paper=("T4", "AI2D wo mask")),
        Suite("RealWorldQA", "MCQ", _CHOICE, "4de008f5", "helps", paper=("T5", "RealWorldQA")),
        Suite("BLINK", "MCQ", _CHOICE, "d5e8af14", "helps", paper=("T5", "BLINK")),
        Suite("MUIRBench", "MCQ", _CHOICE, "2e5e6fd7", "helps", paper=("T5", "Muir")),
        Suite("MMT-Bench_VAL", "MCQ", choice_scores.mmt, "8dd4b730", "helps", paper=("T5", "MMT")),
        Suite("MMT-Bench_VAL_MI", "MCQ", choice_scores.mmt, "c7d7b998", "helps"),
        Suite("R-Bench-Dis", "MCQ", _CHOICE, "d6e961db", "helps", paper=("T5", "R-Bench")),
        Suite("SEEDBench2_Plus", "MCQ", _CHOICE, "e32d3216", "helps", paper=("T4", "SEED-2-Plus")),
        Suite("MME-RealWorld", "MMERealWorld", choice_scores.real_world, "fd341132", paper=("T5", "MME-RW")),
        Suite("MME-RealWorld-CN", "MMERealWorld", choice_scores.real_world, "daaa763d"),
        Suite("WeMath", "MCQ", wemath_scores.wemath, "b5e969a0", "helps", paper=("T15", "WeMath"), missing=_CONCEPTS),
    ]
    for language, (column, mmmb, mmbench) in _LANGUAGES.items():
        paper = ("T8", f"MMMB {column}"), ("T8", f"MMBench {column}")
        found += [
            Suite(f"MMMB_{language}", "MCQ", _CHOICE, mmmb, "helps", paper=paper[0]),
            Suite(f"MMBench_dev_{language}", "MCQ", _CIRCULAR, mmbench, "helps", paper=paper[1]),
        ]
    return found


def _texts() -> list[Suite]:
    """Yes or no, words, texts and numbers."""
    return [
        Suite("HallusionBench", "Y/N", yes_no_scores.hallusion, "0c23ac0d", "helps", paper=("T6", "HallBench")),
        Suite("POPE", "Y/N", yes_no_scores.pope, "c12f5acb", "helps", paper=("T6", "POPE")),
        Suite("MME", "Y/N", yes_no_scores.mme, "b36b43c3", "helps", paper=("T6", "MME")),
        Suite("TextVQA_VAL", "VQA", text_scores.vqa, "b233b31f", paper=("T4", "TextVQA")),
        Suite("DocVQA_VAL", "VQA", text_scores.anls, "d5ee77e1"),
        Suite("DocVQA_TEST", "VQA", text_scores.anls, "6a2f28ca", paper=("T4", "DocVQA"), missing=_HIDDEN),
        Suite("InfoVQA_VAL", "VQA", text_scores.anls, "2342e9c2"),
        Suite("InfoVQA_TEST", "VQA", text_scores.anls, "df535bf5", paper=("T4", "InfoVQA"), missing=_HIDDEN),
        Suite("ChartQA_TEST", "VQA", text_scores.relaxed, "c902e0aa", paper=("T4", "ChartQA")),
        Suite("OCRVQA_TESTCORE", "VQA", text_scores.exact, "c5239fe7", folder="OCRVQA"),
        Suite("GQA_TestDev_Balanced", "VQA", text_scores.exact, "99b62f22"),
        Suite("OCRBench", "VQA", text_scores.ocrbench, "e953d98a", paper=("T4", "OCRBench")),
        Suite("MTVQA_TEST", "VQA", text_scores.mtvqa, "d87c17db", paper=("T8", "MTVQA")),
        Suite("CRPE_RELATION", "VQA", text_scores.crpe, "bad7094c", folder="CRPE", paper=("T6", "CRPE")),
        Suite("CRPE_EXIST", "VQA", text_scores.crpe, "315584e2", folder="CRPE"),
        Suite("ERQA", "VQA", text_scores.erqa, paper=("T11", "ERQA")),
        *(
            Suite(f"VCR_{name}", "VQA", text_scores.vcr, md5, missing=_WORDS, paper=paper)
            for name, md5 in _VCR.items()
            for paper in [("T4", "VCR-EN-Easy EM") if name.startswith("EN_EASY") else ("", "")]
        ),
        # `launch.demo --benchmark_file` writes its table: a whole run on real questions with a model of one's own.
        Suite("EasyVQA", "VQA_ex_prompt", text_scores.exact, missing="not of the paper: the test of the demo"),
    ]


def _maths() -> list[Suite]:
    verse, only = judged_scores.mathverse, "MathVerse_MINI_Vision_Only"
    subsets = ("", "_Vision_Dominant", "_Vision_Intensive", "_Text_Lite", "_Text_Dominant")
    return [
        Suite("MathVista_MINI", "VQA", maths_scores.mathvista, "f199b98e", "helps", paper=("T15", "MathVista")),
        Suite("MathVision", "VQA", maths_scores.mathvision, "93f6de14", "helps", paper=("T15", "MathVision")),
        Suite("MathVision_MINI", "VQA", maths_scores.mathvision, "060fe4fa", "helps"),
        Suite("DynaMath", "VQA", maths_scores.dynamath, "b8425ad9", "helps", paper=("T15", "DynaMath")),
        Suite(only, "VQA", verse, "68a11d46", "required", paper=("T15", "MathVerse"), missing=_JUDGED),
        *(Suite(f"MathVerse_MINI{part}", "VQA", verse, judge="required", missing=_JUDGED) for part in subsets),
    ]


def _judged() -> list[Suite]:
    """Those that a judge alone can score, beside MathVerse."""
    logic, skills, charts = judged_scores.logicvista, judged_scores.mmvet, judged_scores.charxiv
    paper = [("T15", "LogicVista"), ("T6", "MMVet"), ("T5", "WildVision"), ("T4", "CharXiv DQ"), ("T4", "CharXiv RQ")]
    return [
        Suite("LogicVista", "VQA", logic, "41c5d33a", "required", paper=paper[0], missing=_JUDGED),
        Suite("MMVet", "VQA", skills, "748aa6d4", "required", paper=paper[1], missing=_JUDGED),
        Suite("WildVision", "VQA", None, "b38f8015", "required", paper=paper[2], missing=_SEEN),
        Suite("CharXiv_descriptive_val", "VQA", charts, "8507c374", "required", paper=paper[3]),
        Suite("CharXiv_reasoning_val", "VQA", charts, "6fc1a522", "required", paper=paper[4]),
    ]


def _places() -> list[Suite]:
    """Boxes and clicks."""
    found = [Suite("RefCOCO", "GROUNDING", place_scores.refcoco, "f50ca356", paper=("T7", "Overall"))]
    for name, md5 in _SCREENS.items():
        paper = ("T10", "ScreenSpot-v2" if "v2" in name else "ScreenSpot")
        found.append(Suite(name, "GUI", place_scores.screenspot, md5, paper=paper))
    return found


def _videos() -> list[Suite]:
    long_ones, judged, paper = video_scores.long_video_bench, judged_scores.mmbench_video, ("T9", "MMBench-Video")
    return [
        Suite("MVBench", "video", video_scores.mvbench, "fd21d365", "helps", paper=("T9", "MVBench")),
        Suite("Video-MME", "video", video_scores.video_mme, "85bdd91f", "helps", paper=("T9", "Video-MME wo sub")),
        Suite("MMBench-Video", "video", judged, "98f7df3e", "required", paper=paper, missing=_JUDGED),
        Suite("MLVU_MCQ", "video", video_scores.mlvu, "bb5c37e7", "helps", paper=("T9", "MLVU")),
        Suite("LongVideoBench", "video", long_ones, "82905eae", "helps", paper=("T9", "LongVideoBench")),
        Suite("VSI-Bench", "video", video_scores.vsi, "34544fd8", paper=("T11", "VSI-Bench")),
    ]


_EVERY = (*_choices(), *_texts(), *_maths(), *_judged(), *_places(), *_videos())
SUITES: dict[str, Suite] = {suite.name: suite for suite in _EVERY}

# In the paper, and not here.
ABSENT = {
    "MLVU_OpenEnded": "its judge's prompts are not built; the paper's MLVU is of the questions with options",
    "SArena": "renders SVG and scores pictures with networks of their own",
    "SGP-Bench": "no loader is published with the others",
    "OSWorld-G": "the official rule divides the wrapper's clicks by 1,000 a second time, so none of them hits",
    "WindowsAgentArena, WebArena-Lite": "they run programs, and their prompts are published nowhere",
    "Mantis, MMIU, MIRB, SpaCE-10, OmniSpatial": "their files and rules are not described",
}


def get_suite(name: str) -> Suite:
    """The benchmark of a name; InputError where there is none."""
    if name not in SUITES:
        raise InputError(f"no suite is called {name!r}{nearest(name, list(SUITES))}; --suite=list has them all.")
    return SUITES[name]


def describe_suites() -> str:
    """A line a suite: its name, whether it is complete, whether it needs a judge, its file and what is missing."""
    lines = []
    for suite in SUITES.values():
        judge = {"": "by rule", "helps": "by rule, a judge helps", "required": "needs a judge"}[suite.judge]
        state = f"not complete: {suite.missing}" if suite.missing else "complete"
        data = f"{suite.name}.tsv" + (f", md5 {suite.md5}..." if suite.md5 else "")
        data += "" if suite.has_pictures else ", and its videos"
        lines.append(f"{suite.name:32} {judge:22} {data:46} {state}")
    lines += [f"{name}: not here, {why}" for name, why in ABSENT.items()]
    return "\n".join(lines)
