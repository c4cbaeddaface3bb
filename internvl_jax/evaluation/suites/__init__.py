"""Benchmark files of the paper: prompts, answers and scores as VLMEvalKit's InternVL wrapper has them."""
