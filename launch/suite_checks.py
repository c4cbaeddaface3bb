"""What flags of `launch.evaluate` mean something together; none is left out of account in silence."""

from absl import flags

from internvl_jax.errors import InputError
from internvl_jax.evaluation import Suite
from launch import best_of_flags, critics, judging, sampling_flags, suite_flags

_OF_SUITES = ("prompts_only", "rescore", "report", "mode", "images", "frames", "check_md5", "judge", "judge_model")
_OF_MODELS = (
    *("best_of", "critic", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"),
    *("thinking", "reasoning", "max_tiles", "relative_threshold", "absolute_threshold"),
    *("quantise", "cache"),
)


def is_suite_asked() -> bool:
    """Whether a suite is named; InputError for flags that would mean nothing."""
    if sampling_flags.THINKING.value is False:
        raise InputError(
            "--nothinking is for launch.chat; here a model thinks only where it is asked to, so leave it out"
        )
    if not suite_flags.SUITE.value:
        if given := _given(_OF_SUITES):
            raise InputError(f"--{given[0]} is for the paper's benchmarks; name one by --suite")
        return False
    _check_what_is_done()
    if judging.JUDGE_MODEL.present and judging.JUDGE.value is None:
        raise InputError("--judge_model is its name at --judge; give that too")
    if best_of_flags.GRADER.present and (best_of_flags.BEST_OF.value == 1 or critics.CRITIC.value is not None):
        raise InputError("--grader says here which answers agree; give it with --best_of=8, and no --critic")
    return True


def check_files(suites: list[Suite], is_one_file: bool) -> None:
    """InputError for one file as that of several suites, and for frames where there is no video."""
    if is_one_file and len(suites) > 1:
        raise InputError("--data is one file, and --suite has several; give the folder of their files")
    if flags.FLAGS["frames"].present and all(suite.has_pictures for suite in suites):
        raise InputError("--frames is for suites about videos; leave it out")


def _check_what_is_done() -> None:
    """Prompts and predictions need nothing that a model's answers do."""
    if suite_flags.REPORT.value and not suite_flags.RESCORE.value:
        raise InputError("--report is for --rescore; a model's answers have their report in --out")
    if suite_flags.RESCORE.value and (given := _given((*_OF_MODELS, "prompts_only"))):
        raise InputError(f"--rescore asks no model; leave out --{given[0]}")
    if suite_flags.PROMPTS_ONLY.value and (given := _given(("judge", "judge_model", "max_new_tokens"))):
        raise InputError(f"--prompts_only answers and scores nothing; leave out --{given[0]}")


def _given(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if flags.FLAGS[name].present]
