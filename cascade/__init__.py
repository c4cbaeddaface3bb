"""The stages that make InternVL3.5, from scratch on boards of handwritten digits: CPT, SFT, Cascade RL, ViCO."""
