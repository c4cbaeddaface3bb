"""The demo: a tiny model learns easy-VQA from nothing, answers its test questions and reports."""
